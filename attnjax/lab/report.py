"""The report of an experiment: a table on the terminal, report.md, result.json and plots.

Files are written under another name and renamed, so that a reader sees the old or the new one.
"""

import dataclasses
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from attnjax.lab.claims import Claim, Metrics, Verdict, mean_and_sd, plus_minus
from attnjax.lab.errors import UserError

_HEADER = ("claim", "paper", "measured", "criterion", "holds")


def results_folder(path: str | Path) -> Path:
    """Makes the folder and proves that it can be written, before hours are spent on its contents.

    Raises UserError when it cannot.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"results: got {path}, expected a writable folder ({reason})") from None
    return folder


def write_atomically(path: Path, data: bytes) -> None:
    """Writes all of `data` or nothing: a temporary file beside it, then a rename."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; results are as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def report(
    title: str | None,
    claims: Sequence[Claim],
    seeds: Sequence[Metrics],
    *,
    config: Any,
    folder: Path,
    seconds: float,
    figures: Mapping[str, Figure],
    console: Console | None = None,
) -> tuple[Verdict, ...]:
    """Judges the claims on the metrics of each seed; prints and writes everything to `folder`.

    `title` is the experiment's docstring, whose first line is its name.  `figures` maps the name
    of a PNG file, without the ending, to its figure.  Whatever does not hold is said not to hold.
    """
    title = title or folder.name
    verdicts = tuple(claim.judge(seeds) for claim in claims)
    rows = [verdict.row() for verdict in verdicts]
    console = Console() if console is None else console
    console.print(_table(measures(seeds), None))
    console.print(_table([_HEADER, *rows], "holds"))
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_atomically(folder / f"{name}.png", buffer.getvalue())
    record = {
        "title": title.strip().splitlines()[0],
        "claims": [verdict.record() for verdict in verdicts],
        "metrics": list(seeds),
        "config": dataclasses.asdict(config),
        "command": command(),
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    text = json.dumps(_plain(record), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "result.json", text.encode())
    write_atomically(folder / "report.md", _markdown(title, rows, seeds, record, figures).encode())
    held = sum(verdict.holds for verdict in verdicts)
    console.print(
        f"{held} of {len(verdicts)} claims hold at this size. "
        f"Tables, numbers and plots: {folder}{os.sep}",
        highlight=False,
        soft_wrap=True,
    )
    return verdicts


def measures(seeds: Sequence[Metrics]) -> list[tuple[str, ...]]:
    """The table of measures and variants, mean +- sd over seeds; a header row first.

    The more numerous of the two are the rows.
    """
    names = list(dict.fromkeys(name for values in seeds[0].values() for name in values))
    variants = list(seeds[0])

    def cell(name: str, variant: str) -> str:
        if name not in seeds[0][variant]:
            return ""
        found = [metrics[variant][name] for metrics in seeds]
        return plus_minus(*mean_and_sd(found), len(found))

    if len(variants) > len(names):
        return [("", *names), *((v, *(cell(n, v) for n in names)) for v in variants)]
    return [("", *variants), *((n, *(cell(n, v) for v in variants)) for n in names)]


def command() -> str:
    """The command line of this process, with the interpreter as plain `python`."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def versions() -> dict[str, str]:
    """Versions of everything whose change could change a number."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "machine": platform.machine()}


def _table(rows: Sequence[Sequence[str]], verdict: str | None) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, name in enumerate(rows[0]):
        # Names of variants break at their underscores; whole numbers and names fit 80 columns.
        table.add_column(name.replace("_", " "), no_wrap=place == 0 and verdict is None)
    for row in rows[1:]:
        style = None if verdict is None else "green" if row[-1] == "yes" else "red"
        cells = list(row)
        if style:
            cells[-1] = f"[{style}]{cells[-1]}[/{style}]"
        table.add_row(*cells)
    return table


def _markdown(title, rows, seeds, record, figures) -> str:
    first, _, rest = title.strip().partition("\n")
    took = f"{record['seconds']} s, seeds: {len(seeds)}"
    lines = [f"# {first}", "", "```", *rest.strip("\n").splitlines(), "```", ""]
    lines += [f"`{record['command']}`, {took}", "", *_markdown_table([_HEADER, *rows]), ""]
    lines += [*_markdown_table(measures(seeds)), ""]
    lines += [f"![{name.replace('_', ' ')}]({name}.png)" for name in figures]
    settings = ", ".join(f"{name}={value}" for name, value in _plain(record["config"]).items())
    built = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    return "\n".join([*lines, "", f"Settings: {settings}.", "", f"Versions: {built}.", ""])


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _plain(value: Any) -> Any:
    """What JSON can say: tuples become lists, paths text, and nan and infinities text too."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
