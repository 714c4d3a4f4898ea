"""Every mechanism of the package, and the papers that they come from.

`OPS` gathers the records of all leaves; `papers()` reads papers.csv and finds what stands for each
paper: ops by their records, other modules and experiments by their `PAPERS = (id, ...)`.
"""

import ast
import csv
import functools
import importlib
import os
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from attnjax import ops
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
