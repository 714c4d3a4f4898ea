"""The report of a study: tables on the terminal, report.md, result.json and plots.

Only what was measured in that run is printed.  Files are written under another name and renamed,
so that a reader sees the old or the new one.
"""

import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from attnjax.lab import plots
from attnjax.lab.arms import Result
from attnjax.lab.claims import Claim, Metrics, Verdict, mean_and_sd, plus_minus
from attnjax.lab.errors import UserError
from attnjax.lab.files import plain, write_atomically

WIDTH = 80  # columns of a table on the terminal
_STYLES = {"holds": "green", "fails": "red", "untested": "yellow"}
Rows = list[tuple[str, ...]]  # a header, then cells


def report(
    doc: str,
    claims: Sequence[Claim],
    result: Result,
    *,
    effort: str,
    config: Any,
    folder: Path,
    seconds: float,
    figures: Mapping[str, Figure],
    console: Console,
) -> tuple[Verdict, ...]:
    """Judges the claims; prints and writes everything to `folder`.

    `doc` is the experiment's docstring, whose first line is its name.  `figures` maps the name of a
    PNG file, without the ending, to its figure.
    """
    verdicts = tuple(claim.judge(result.seeds, effort) for claim in claims)
    record = {
        "title": doc.strip().splitlines()[0],
        "effort": effort,
        "claims": [verdict.record() for verdict in verdicts],
        "metrics": result.seeds,
        "parameters": result.parameters,
        "config": dataclasses.asdict(config),
        "command": command(),
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    tables = measures(result)
    for table in tables:
        for part in narrowed(table, WIDTH):
            console.print(Text("\n".join(aligned(part)) + "\n"), soft_wrap=True)
    for verdict in verdicts:
        console.print(_told(verdict), soft_wrap=True)
    try:
        _write(folder, doc, verdicts, tables, record, {**plots.of_result(result), **figures})
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"results: the report cannot be written to {folder} ({reason}); the same command "
            "writes it from what is kept there"
        ) from None
    counts = [f"{sum(v.word == word for v in verdicts)} {word}" for word in _STYLES]
    console.print(
        f"claims: {', '.join(counts)}; tables, numbers and plots: {folder}{os.sep}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return verdicts


def _write(folder, doc, verdicts, tables, record, figures) -> None:
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        write_atomically(folder / f"{name}.png", buffer.getvalue())
    write_atomically(
        folder / "report.md",
        _markdown(folder.name, doc, verdicts, tables, record, figures).encode(),
    )
    text = json.dumps(plain(record), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "result.json", text.encode())


def measures(result: Result) -> list[Rows]:
    """A table for each group of rows with the same measures: mean +- sd over seeds."""
    seeds, groups = result.seeds, {}
    for row, values in seeds[0].items():
        task = row.partition(": ")[0] if ": " in row else ""
        groups.setdefault((task, frozenset(values)), []).append(row)
    return [_table(result, rows) for rows in groups.values()]


def _table(result: Result, rows: Sequence[str]) -> Rows:
    names = list(dict.fromkeys(name for row in rows for name in result.seeds[0][row]))
    count = any(row in result.parameters for row in rows)
    table: Rows = [("", *names, *(["parameters"] if count else []))]
    for row in rows:
        cells = [_cell(result.seeds, row, name) for name in names]
        told = [f"{result.parameters[row]:,}" if row in result.parameters else ""] if count else []
        table.append((row, *cells, *told))
    return table


def _cell(seeds: Sequence[Metrics], row: str, name: str) -> str:
    found = [metrics[row][name] for metrics in seeds if name in metrics[row]]
    return plus_minus(*mean_and_sd(found), len(found)) if found else ""


def narrowed(rows: Rows, width: int) -> list[Rows]:
    """The table as several of some columns each, none wider than `width` where a cell allows."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    parts: list[list[int]] = []
    for column in range(1, len(widths)):
        if parts and widths[0] + sum(widths[c] + 2 for c in (*parts[-1], column)) <= width:
            parts[-1].append(column)
        else:
            parts.append([column])
    return [[(row[0], *(row[c] for c in part)) for row in rows] for part in parts]


def aligned(rows: Rows) -> list[str]:
    """The lines of a table on the terminal."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _told(verdict: Verdict) -> Text:
    """The verdict in lines of text."""
    claim = verdict.claim
    indent = " " * 9
    wrapped = lambda text: textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False
    )
    text = Text()
    text.append(f"{verdict.word:<9}", style=_STYLES[verdict.word])
    text.append(wrapped(f"{claim.says} [paper: {claim.paper}]").lstrip() + "\n")
    lines = [f"{claim.quantity}: {verdict.measured}, wanted {claim.lies}", verdict.why]
    for line in filter(None, lines):
        text.append(wrapped(line) + "\n", "dim")
    return text


def command() -> str:
    """The command line of this process, with the interpreter as plain `python`."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def versions() -> dict[str, str]:
    """Versions of everything whose change could change a number."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "machine": platform.machine()}


def _markdown(name, doc, verdicts, tables, record, figures) -> str:
    first, _, rest = doc.strip().partition("\n")
    minutes = record["seconds"] / 60
    lines = [f"# {name}", "", f"Claimed: {first}", ""]
    lines += ["```text", *rest.strip("\n").splitlines(), "```", ""]
    lines += [f"`{record['command']}`, {len(record['metrics'])} seeds or rounds, "
              f"{minutes:.1f} minutes.", ""]  # fmt: skip
    if record["effort"] != "full":
        lines += [f"A {record['effort']} run: it shows that everything runs, and no more.", ""]
    head = ("verdict", "claim", "paper", "measured", "wanted")
    claims: Rows = [head]
    for v in verdicts:
        why = f"{v.word}: {v.why}" if v.why else f"**{v.word}**"
        said = f"{v.claim.says} ({v.claim.quantity})"
        claims.append((why, said, v.claim.paper, v.measured, str(v.claim.lies)))
    for table in (claims, *tables):
        lines += [*_markdown_table(table), ""]
    lines += [f"![{name}]({name}.png)" for name in figures]
    settings = ", ".join(f"{name}={value}" for name, value in plain(record["config"]).items())
    built = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    return "\n".join([*lines, "", f"Settings: {settings}.", "", f"Versions: {built}.", ""])


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]
