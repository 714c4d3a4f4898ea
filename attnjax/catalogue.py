"""Every mechanism of the package, and the table of papers they come from.

`VARIANTS` gathers the records of all leaves; `PAPERS` is papers.csv, one row a paper: what stands
for it here, or why nothing does.
"""

import csv
import importlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from attnjax.op import Variant
from attnjax.ops import (
    kv_decode,
    linear_recurrent,
    local_structured,
    low_rank,
    position,
    softmax_core,
    sparse_select,
)

VARIANTS: tuple[Variant, ...] = (
    *softmax_core.VARIANTS,
    *position.VARIANTS,
    *local_structured.VARIANTS,
    *kv_decode.VARIANTS,
    *linear_recurrent.VARIANTS,
    *sparse_select.VARIANTS,
    *low_rank.VARIANTS,
)

STATUSES = ("done", "todo", "out")


@dataclass(frozen=True)
class Paper:
    """One row of papers.csv.

    status    done: entries cover it; todo: not yet, or the part that `why` names is missing;
              out: nothing to build, for the reason in `why`
    entries   dotted names of the functions and experiments that stand for it
    """

    id: int
    title: str
    family: str
    status: str
    entries: tuple[str, ...]
    why: str


def _read() -> tuple[Paper, ...]:
    text = (resources.files("attnjax") / "papers.csv").read_text(encoding="utf-8")
    return tuple(
        Paper(
            int(row["id"]),
            row["title"],
            row["family"],
            row["status"],
            tuple(row["entries"].split(";")) if row["entries"] else (),
            row["why"],
        )
        for row in csv.DictReader(text.splitlines())
    )


PAPERS = _read()


def load(dotted: str) -> Any:
    """The module, or the attribute of one, that a dotted name names; raises if there is none."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        module, _, name = dotted.rpartition(".")
        if not module or error.name != dotted:
            raise
        return getattr(importlib.import_module(module), name)
