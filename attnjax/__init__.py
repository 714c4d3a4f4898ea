"""Attention mechanisms in JAX: each a short pure function over a few engines."""

import importlib
from typing import Any

from attnjax.core import features as features
from attnjax.core import masks as masks
from attnjax.core import mods as mods
from attnjax.core import normalizers as normalizers
from attnjax.core.blocks import select as select
from attnjax.core.blocks.selection import Selection as Selection
from attnjax.core.dispatch import explain as explain
from attnjax.core.dropout import Dropout as Dropout
from attnjax.core.pairwise.attend import attend as attend
from attnjax.core.pairwise.attend import attend_state as attend_state
from attnjax.core.pairwise.attend import attention_scores as attention_scores
from attnjax.core.pairwise.attend import attention_weights as attention_weights
from attnjax.core.pairwise.attend import dot_product_attention as dot_product_attention
from attnjax.core.pairwise.attend import join_states as join_states
from attnjax.core.pairwise.blockwise import Blockwise as Blockwise
from attnjax.core.pairwise.measure import measure as measure
from attnjax.core.recurrence.chunked import Chunked as Chunked
from attnjax.core.recurrence.linear import linear_attend as linear_attend

__version__ = "0.1.0"

# Reachable after `import attnjax`, and imported when they are: some need an extra.
_EXTRA = {
    "core": "", "ops": "", "parallel": "", "decode": "", "probes": "", "catalogue": "",
    "nn": "nn", "lab": "lab",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _EXTRA:
        raise AttributeError(f"module 'attnjax' has no attribute {name!r}")
    try:
        return importlib.import_module(f"attnjax.{name}")
    except ModuleNotFoundError as error:
        if not (extra := _EXTRA[name]):
            raise
        raise ImportError(f'{error}; pip install "attnjax[{extra}]"', name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXTRA})
