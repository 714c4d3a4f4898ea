"""Trained from the start, compressed, selected and local keys together match full attention.

    python -m experiments.sparse.native_sparse

  Yuan et al. 2025, "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse
      Attention", arXiv:2502.11089: pretrained with it, a model matches or exceeds full attention,
      in loss and on long contexts.

Text in which some tokens are needles, which are asked for at the end.  Runs of half a block are
compressed, as many blocks selected as the settings say, and the local window is one block.  What is
worse is full attention cut to the own block.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attnjax import lab
from attnjax.experiments.sparse import _needles as shared
from attnjax.lab import Claim, Task, below, of
from attnjax.nn import NativeSparse
from attnjax.ops.sparse_select import Branches, native_sparse_attention

PAPERS = (214,)


@dataclass(frozen=True)
class Config(shared.Config):
    results: Path = Path("results/native_sparse")


QUICK = replace(Config(), seeds=1, steps=100, width=32, depth=1, length=64, judged=32)


def with_rotary(branches: Branches) -> lab.Layer:
    """`nn.NativeSparse` with rotary positions: a run's is that of its last token."""

    def op(q, k, v, gates, *, compressed, local):
        runs, values = compressed
        ends = np.arange(runs.shape[1]) * branches.stride + branches.length - 1
        return native_sparse_attention(
            shared.rotated(q), shared.rotated(k), v, gates, branches=branches,
            compressed=(shared.rotated(runs, ends), values),
            local=(shared.rotated(local[0]), local[1]),
        )  # fmt: skip

    def make(width: int, heads: int, **rest: Any) -> NativeSparse:
        layer = NativeSparse(width, heads, branches=branches, **rest)
        layer.op = op
        return layer

    return lab.Layer(make)


def studied(c: Config) -> dict[str, Task]:
    half = c.block // 2
    layer = with_rotary(Branches(half, half // 2, c.block, c.top_k, c.block))
    arms = {
        "full": shared.model(c, shared.full),
        "full, own block": shared.instead(shared.model(c, shared.own_block(c)), "full"),
        "native sparse": shared.model(c, layer),
    }
    return {"needles": shared.task(c, arms)}


def claims(c: Config) -> tuple[Claim, ...]:
    return (
        Claim("loss on text as with full attention", "matches or exceeds",
              of("native sparse", "text") - of("full", "text"), below(0.03),
              (shared.far_helps(),)),
        Claim("as many needles found", "matches or exceeds",
              of("full", "found") - of("native sparse", "found"), below(0.1),
              (shared.far_needed(),)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
