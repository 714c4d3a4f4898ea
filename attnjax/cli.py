"""Attention mechanisms in JAX: what there is, what runs it, many devices, runs and maps."""

import difflib
import functools
import inspect
import json
import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

import attnjax
from attnjax import catalogue
from attnjax.catalogue import OPS, STATUSES, Entry, Paper, Part
from attnjax.op import Op
from attnjax.parallel.model.balance import balance
from attnjax.parallel.model.planning import plan

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
Words = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WORDS")]
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Maps = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


class UsageError(Exception):
    """A mistake of the person at the command line; its text is one line."""


def papers(
    family: str | None = None, todo: Flag = False, json: Flag = False, markdown: Flag = False
) -> None:
    """Lists the papers, and counts them by family.

    Args:
        family: Only papers of this family.
        todo: Only papers that are not done yet.
        json: Print JSON instead of a table.
        markdown: Print a Markdown table instead.
    """
    rows: Iterable[Paper] = catalogue.papers()
    if family is not None:
        _known("family", family, {paper.family for paper in rows})
        rows = [paper for paper in rows if paper.family == family]
    if todo:
        rows = [paper for paper in rows if paper.status == "todo"]
    if json and markdown:
        raise UsageError("--json, --markdown: given together; expected one of them")
    show = _print_json if json else _print_markdown if markdown else _print_table
    show(tuple(rows))


def find(words: Words = ()) -> None:
    """Searches mechanisms, masks, mods, normalizers and papers: names, formulas, titles.

    Args:
        words: What all must be found, at the beginning of a word; without any, lists everything.
    """
    found = catalogue.find(words)
    if not found:
        raise UsageError(f"WORDS: nothing has {' '.join(words)}; `find` alone lists everything")
    for entry in found:
        print(f"{entry.name}  ({entry.kind})\n    {entry.about}")


def show(name: Name) -> None:
    """Tells a mechanism's formula, paper, signature, implementations, limits and exemptions.

    Args:
        name: An op, such as softpick_attention, a mask, mod or normalizer, such as alibi, the id
            of a paper, or its arXiv number.
    """
    if name.isdecimal():
        paper = _paper(int(name))
        why = paper.out or paper.missing
        why = f": {why}" if why else ""
        print(f"{paper.id}  {paper.title}  ({paper.family}, {paper.status}{why})")
        for entry in paper.entries:
            print(f"    {entry}")
        print()
    told = None
    for each in _named(name):
        if isinstance(each, Part):
            _print_part(each)
            continue
        module = sys.modules[each.fn.__module__]
        if module is not told:
            print(inspect.getdoc(module))
            told = module
        print()
        _print_op(each)


def explain(name: Name, length: int | None = None) -> None:
    """Tells which implementation runs a mechanism here, and why the others do not.

    Args:
        name: An op, such as softpick_attention, or the id of a paper.
        length: How many tokens; few if it is left out.
    """
    ops = [each for each in _named(name) if isinstance(each, Op)]
    if not ops:
        raise UsageError(f"NAME: {name} has no op; expected one with entries under ops")
    if length is not None and length < 1:
        raise UsageError(f"--length: got {length}, expected at least 1")
    for op in ops:
        print(implementations(op, **({} if length is None else {"T": length, "S": length})))


def compare(first: Folder, second: Folder) -> None:
    """Compares two finished runs of an experiment: settings, measures and their intervals.

    Args:
        first: A folder with result.json, such as results/recall.
        second: Another one, from which the first is subtracted.
    """
    from attnjax.lab.compare import compare  # plots and the like are not for the other commands

    compare(first, second)


def view(file: Maps, out: Path | None = None) -> None:
    """Writes attention maps as a page: all heads, one head token by token, the neurons of a score.

    Args:
        file: An .npz with weights (layers,N,T,S), and if there are tokens, key_tokens (texts), q,
            k, scale, title; `np.savez(path, weights=..., tokens=...)` makes one.
        out: The page; beside the file if not given.
    """
    from attnjax.probes.view import view_file

    if not file.is_file():
        raise UsageError(f"FILE: {file} is no file")
    try:
        page = view_file(file)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UsageError(str(error)) from None
    print(page.save(file.with_suffix(".html") if out is None else out))


def draw(name: Name, length: int | None = None, out: Path | None = None) -> None:
    """Draws a mask, or which tokens the outputs of a mechanism depend on, as a PNG.

    Args:
        name: An op, such as moba, or a mask as in Python: "causal & (window(8) | sinks(2))".
        length: How many tokens: 64 for a mask, 36 for an op if it is left out.
        out: The picture; one of its name in this folder if not given.
    """
    from attnjax.lab import draw  # plots are not for the other commands
    from attnjax.lab.errors import UserError

    if length is not None and length < 1:
        raise UsageError(f"--length: got {length}, expected at least 1")
    sizes = {} if length is None else {"length": length}
    ops = {op.name: op for op in OPS}
    try:
        if name in ops:
            figure = draw.picture_of_op(ops[name], **sizes)
        else:
            figure = draw.picture_of_mask(name, **sizes)
    except UserError as error:
        hint = difflib.get_close_matches(name, ops, n=1)
        also = f"; did you mean {hint[0]!r}?" if hint and name.isidentifier() else ""
        raise UsageError(f"{error}{also}") from None
    path = Path(re.sub(r"\W+", "_", name).strip("_") + ".png") if out is None else out
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(path)


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command, or prints the version; returns the exit code, 2 for a wrong argument."""
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    if args == ["--version"]:
        print(f"attnjax {attnjax.__version__}")
        return 0
    commands = {
        "find": find,
        "papers": papers,
        "show": show,
        "explain": explain,
        "balance": _checked(balance),
        "plan": _checked(plan),
        "compare": _checked(compare),
        "view": view,
        "draw": draw,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m attnjax", description=__doc__, args=args
        )
        sys.stdout.flush()
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _checked(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with numbers that it refuses told as mistakes of the person who typed them."""

    @functools.wraps(command)
    def checked(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            raise UsageError(str(error)) from error

    return checked


# ------------------------------------------------------------------------------------ look-ups


def _known(what: str, given: str, names: Iterable[str]) -> None:
    names = sorted(names)
    if given not in names:
        nearest = difflib.get_close_matches(given, names, n=1, cutoff=0.0)[0]
        raise UsageError(f"{what}: {given!r} is unknown; did you mean {nearest!r}?")


def _paper(number: int) -> Paper:
    known = {paper.id: paper for paper in catalogue.papers()}
    if number not in known:
        raise UsageError(f"NAME: no paper {number}; expected an id {min(known)} .. {max(known)}")
    return known[number]


def _named(name: str) -> tuple[Op | Part, ...]:
    """What has that name, or begins so and is alone; or the ops of the paper with that number."""
    if name.isdecimal():
        return tuple(op for op in OPS if _paper(int(name)).id in op.papers)
    if re.fullmatch(r"\d{4}\.\d{4,5}", name):
        has = lambda op: f"arXiv:{name}" in (inspect.getdoc(sys.modules[op.module]) or "")
        if found := tuple(op for op in OPS if has(op)):
            return found
        raise UsageError(f"NAME: no op says arXiv:{name}; `papers` lists what is there")
    known: dict[str, Op | Part] = {part.name.rpartition(".")[2]: part for part in catalogue.parts()}
    known |= {part.name: part for part in catalogue.parts()} | {op.name: op for op in OPS}
    if name not in known:
        begin = [each for each in known if each.startswith(name)]
        if len(begin) != 1:
            _unknown(name, begin, known)
        name = begin[0]
    return (known[name],)


def _unknown(name: str, begin: Sequence[str], known: Iterable[str]) -> None:
    """Raises UsageError with the nearest: what begins so, what a search finds, what is like it."""
    found: list[Entry] = [] if begin else list(catalogue.find([name]))
    near = list(begin) or [each.name for each in found]
    near = near or difflib.get_close_matches(name, known, n=1)
    told = ", ".join(map(repr, near[:4]))
    hint = f"did you mean {told}?" if near else "`find` alone lists what there is"
    raise UsageError(f"NAME: {name!r} is unknown; {hint}")


def implementations(op: Op, **sizes: Any) -> str:
    """Which implementation runs it here, and why the others do not."""
    return str(attnjax.explain(op.fn, **op.sample(**sizes)))


# ------------------------------------------------------------------------------------ printing


def _print_op(op: Op) -> None:
    print(signature(op), end="\n\n")
    print(inspect.getdoc(op.fn), end="\n\n")
    print(f"Papers: {', '.join(map(str, op.papers)) or 'none of papers.csv'}")
    print(f"Reads: {op.may_read}")
    _print_list("Tested limits", (limit.says for limit in op.limits))
    _print_list("Exempt", (f"{law}: {reason}" for law, reason in op.exempt.items()))
    _print_list("Implementations", implementations(op).splitlines()[1:])


def _print_part(part: Part) -> None:
    head = f"attnjax.{part.name}"
    if inspect.isfunction(part.value):
        head += str(inspect.signature(part.value))
    print(f"{_plain(head)}\n\n{part.doc}\n\nA {part.kind}.")


def _print_list(title: str, lines: Iterable[str]) -> None:
    if lines := list(filter(None, lines)):
        print(f"{title}:", *lines, sep="\n    ")


def signature(op: Op) -> str:
    """One parameter a line, arrays by their letters: q: Float[B T N H]."""
    signature = inspect.signature(op.fn)
    lines = [str(parameter) for parameter in signature.parameters.values()]
    named = [p.kind is p.KEYWORD_ONLY for p in signature.parameters.values()]
    if any(named):
        lines.insert(named.index(True), "*")
    head, tail = f"{op.dotted}(", inspect.formatannotation(signature.return_annotation)
    return _plain("\n    ".join([head, *(f"{line}," for line in lines)]) + f"\n) -> {tail}")


def _plain(text: str) -> str:
    """A signature with arrays by their letters, and classes without their modules."""
    text = re.sub(r"[\w.]*\b(Float|Int|Bool)\[[\w.]*Array, ' ?([^']*)'\]", r"\1[\2]", text)
    text = re.sub(r"(?:typing\.)?Annotated\[(.*), '[^']*'\]", r"\1", text)
    return re.sub(r"attnjax\.[a-z_.]*\.([A-Z])", r"\1", text)


def _print_json(rows: Sequence[Paper]) -> None:
    told = [asdict(paper) | {"status": paper.status} for paper in rows]
    print(json.dumps(told, indent=1, ensure_ascii=False))


def _print_markdown(rows: Sequence[Paper]) -> None:
    cell = lambda text: str(text).replace("|", "\\|")
    print("| id | title | family | status | entries | out, or missing |\n|---|---|---|---|---|---|")
    for paper in rows:
        entries = ", ".join(f"`{entry}`" for entry in paper.entries)
        why = paper.out or paper.missing
        cells = (paper.id, paper.title, paper.family, paper.status, entries, why)
        print(f"| {' | '.join(map(cell, cells))} |")


def _print_table(rows: Sequence[Paper]) -> None:
    console = Console(
        width=None if sys.stdout.isatty() else 160, markup=False, highlight=False, emoji=False
    )
    table = Table("id", "title", "family", "status", "entries or reason")
    for paper in rows:
        entries = [entry.rpartition(".")[2] for entry in paper.entries]
        told = "; ".join(filter(None, [", ".join(entries), paper.out, paper.missing]))
        table.add_row(str(paper.id), paper.title, paper.family, paper.status, told)
    console.print(table)
    counts = Table("family", *STATUSES, "all")
    for family in sorted({paper.family for paper in rows}):
        counts.add_row(family, *_counts(p for p in rows if p.family == family))
    counts.add_section()
    counts.add_row("all", *_counts(rows))
    console.print(counts)


def _counts(rows: Iterable[Paper]) -> list[str]:
    by_status = Counter(paper.status for paper in rows)
    return [str(by_status[status]) for status in STATUSES] + [str(by_status.total())]
