"""Every mechanism of the package, what composes them, and the papers that they come from.

`OPS` gathers the records of all leaves; `parts()` the masks, mods, normalizers, feature maps and
selectors; `papers()` reads papers.csv and finds what stands for each paper: ops by their records,
other modules and experiments by their `PAPERS = (id, ...)`.  `find` searches all of them.
"""

import ast
import csv
import functools
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from attnjax import features, masks, mods, normalizers, ops, select
from attnjax.core import positions
from attnjax.op import Op

FAMILIES = tuple(
    importlib.import_module(f"attnjax.ops.{module.name}")
    for module in pkgutil.iter_modules(ops.__path__)
    if module.ispkg
)
OPS: tuple[Op, ...] = tuple(op for family in FAMILIES for op in family.OPS)

STATUSES = ("done", "todo", "out")


@dataclass(frozen=True)
class Paper:
    """One row of papers.csv, and what stands for it.

    entries   dotted names of the ops, modules and experiments that implement it
    out       why there is nothing to build, or ""
    missing   what is not there yet beside the entries, or ""
    """

    id: int
    title: str
    family: str
    entries: tuple[str, ...]
    out: str
    missing: str

    @property
    def status(self) -> str:
        """out, done: entries cover it, or todo: not yet, or not all of it."""
        if self.out:
            return "out"
        return "done" if self.entries and not self.missing else "todo"


@functools.cache
def papers() -> tuple[Paper, ...]:
    """All papers, in the order of their ids."""
    text = (resources.files("attnjax") / "papers.csv").read_text(encoding="utf-8")
    entries = _entries()
    return tuple(
        Paper(
            int(row["id"]),
            row["title"],
            row["family"],
            tuple(entries.get(int(row["id"]), ())),
            row["out"],
            row["missing"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def _entries() -> dict[int, list[str]]:
    """Id of a paper -> what stands for it: ops first, then modules, then experiments."""
    found: dict[int, list[str]] = {}
    for op in OPS:
        for number in op.papers:
            found.setdefault(number, []).append(op.dotted)
    for module, numbers in sorted(_declared(), key=lambda pair: "experiments" in pair[0]):
        for number in numbers:
            found.setdefault(number, []).append(module)
    return found


def _declared() -> Iterator[tuple[str, tuple[int, ...]]]:
    """(module, its PAPERS) of those that have some, read without importing them."""
    root = Path(str(resources.files("attnjax")))
    walk = os.walk(root, followlinks=True)  # kernels and experiments are links in a checkout
    found = (Path(folder, name) for folder, _, names in walk for name in names)
    for path in sorted(path for path in found if path.suffix == ".py"):
        text = path.read_text(encoding="utf-8")
        if "\nPAPERS = " not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAPERS":
                parts = path.relative_to(root).with_suffix("").parts
                yield ".".join(("attnjax", *parts)), ast.literal_eval(node.value)


# ------------------------------------------------------------------------------- what composes

# namespace -> (what one of its names is, where the namespace is imported from)
NAMESPACES = {
    masks: ("mask", "masks"),
    mods: ("mod", "mods"),
    normalizers: ("normalizer", "normalizers"),
    features: ("feature map", "features"),
    select: ("selector", "select"),
    positions: ("positions", "core.positions"),
}


@dataclass(frozen=True)
class Part:
    """A public function or value that composes: `masks.causal`, `mods.alibi`, ..."""

    name: str
    kind: str
    doc: str
    value: object


@functools.cache
def parts() -> tuple[Part, ...]:
    """All of them: the names of the namespaces that stand in a file with a text of their own."""
    found = []
    for space, (kind, where) in NAMESPACES.items():
        home = Path(str(inspect.getsourcefile(space)))
        files = sorted(home.parent.glob("*.py")) if home.stem == "__init__" else [home]
        for name, doc in (each for path in files for each in _documented(path)):
            if hasattr(space, name) and name.islower() and not name.startswith("_"):
                value = getattr(space, name)
                found.append(Part(f"{where}.{name}", kind, inspect.cleandoc(doc), value))
    return tuple(found)


def _documented(path: Path) -> Iterator[tuple[str, str]]:
    """(name, its text) of the functions of a file, and of the values with a text below them."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef):
            yield node.name, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(after.value, ast.Constant):
                yield ast.unparse(target), str(after.value.value)


# ---------------------------------------------------------------------------------- the search


@dataclass(frozen=True)
class Entry:
    """Something that `find` finds: its name, what it is, one line about it, all its text."""

    name: str
    kind: str
    about: str
    text: str = ""


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Ops by family, then parts, then papers that nothing stands for."""
    titles = {paper.id: paper.title for paper in papers()}
    found = []
    for op in OPS:
        module = inspect.getdoc(inspect.getmodule(op.fn)) or ""
        told = [module, inspect.getdoc(op.fn) or "", *(titles[number] for number in op.papers)]
        kind = f"{op.family}, papers {', '.join(map(str, op.papers)) or 'none'}"
        found.append(Entry(op.name, kind, told[1].partition("\n")[0], "\n".join(told)))
    for part in parts():
        found.append(Entry(part.name, part.kind, part.doc.partition("\n")[0], part.doc))
    for paper in papers():
        if not paper.entries:
            kind = f"{paper.family}, {paper.status}"
            found.append(Entry(f"paper {paper.id}", kind, paper.title))
    return tuple(found)


def find(words: Sequence[str]) -> tuple[Entry, ...]:
    """The entries with words that begin so, all of them: first those whose names have them."""
    wanted = [re.compile(rf"\b{re.escape(word)}", re.IGNORECASE) for word in words]
    has = lambda text: all(each.search(text.replace("_", " ")) for each in wanted)
    ranks = (
        lambda e: has(e.name),
        lambda e: has(f"{e.name} {e.about}"),
        lambda e: has(f"{e.name} {e.about} {e.text}"),
    )
    ranked = ((next((i for i, rank in enumerate(ranks) if rank(e)), None), e) for e in entries())
    found = [(rank, e) for rank, e in ranked if rank is not None]
    return tuple(e for _, e in sorted(found, key=lambda pair: pair[0]))
