"""Two finished runs beside each other: settings that differ, and measures with their intervals."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from attnjax.lab.claims import Metrics, interval, mean_and_sd, plus_minus
from attnjax.lab.errors import UserError
from attnjax.lab.report import WIDTH, aligned, narrowed


def compare(first: Path, second: Path, console: Console | None = None) -> None:
    """Prints what differs between the results in two folders.

    The difference is second - first, the mean over seeds that both have, with its 90 % interval;
    seeds of one number are paired.  A star marks an interval without zero.

    Raises UserError where a folder holds no result, and where nothing can be compared.
    """
    console = Console() if console is None else console
    one, two = read(first), read(second)
    settings = {**one["config"], **two["config"]}
    differ = [n for n in settings if one["config"].get(n) != two["config"].get(n)]
    told = [f"{n} {one['config'].get(n)} -> {two['config'].get(n)}" for n in differ]
    console.print(f"settings: {', '.join(told) or 'the same'}", highlight=False, soft_wrap=True)
    rows = differences(one["metrics"], two["metrics"])
    if len(rows) == 1:
        raise UserError(f"compare: got {first} and {second}, expected some rows that both have")
    for part in narrowed(rows, WIDTH):
        console.print(Text("\n".join(aligned(part)) + "\n"), soft_wrap=True)


def read(folder: Path) -> dict[str, Any]:
    """The record of a finished run."""
    path = folder / "result.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        told = f"compare: got {folder}, expected a folder with result.json ({error})"
        raise UserError(told) from None


def differences(first: list[Metrics], second: list[Metrics]) -> list[tuple[str, ...]]:
    """A line a row and measure that both have; the header first."""
    lines: list[tuple[str, ...]] = [("", "first", "second", "difference", "90 % interval")]
    pairs = list(zip(first, second, strict=False))
    for row, values in first[0].items():
        for name in values:
            found = [(a[row][name], b[row][name]) for a, b in pairs if name in b.get(row, {})]
            if found:
                apart = [b - a for a, b in found]
                low, high = interval(apart)
                star = " *" if low > 0 or high < 0 else ""
                each = [plus_minus(*mean_and_sd(x), len(x)) for x in zip(*found, strict=True)]
                mean = f"{mean_and_sd(apart)[0]:+.3g}"
                lines.append((f"{row}, {name}", *each, mean, f"{low:+.3g} to {high:+.3g}{star}"))
    return lines
