"""What attention over selected blocks costs: selector, attention and whole op, beside dense.

    python -m experiments.sparse.sparse_cost
    python -m experiments.sparse.sparse_cost --methods "moba 512" --lengths 32768 65536 --rounds 1

  Lu et al. 2025, "MoBA", arXiv:2502.13189; Yuan et al. 2025, "Native Sparse Attention",
      arXiv:2502.11089; Gao et al. 2024, "SeerAttention", arXiv:2410.13276: faster than full
      attention at long lengths.  Their users ask from which length on, with everything counted.

Causal float32 attention in which every query selects one eighth of the blocks, beside dense
blockwise attention on the same arrays: MoBA with blocks of 128 and of 512 keys for each query and
head; NSA with its defaults (compression 32 by 16, blocks of 64 shared by four heads, window 512);
SeerAttention with blocks of 64 queries and keys, its gate untrained.  Keys are random, so blocks
are chosen evenly; K = N, but N/4 for NSA, whose rival then has as few.

"select" is the time until the selection is there, "attend" that of attention over it, "whole" that
of the op in one program.  "share" is how many of the visible pairs of blocks are selected: causal
attention sees half of all, so an eighth of the blocks is nearly a quarter of those seen; "over
ideal" is the attention's time over share x dense time.  "crossover" is the length from which the
whole op is faster than dense, nan where it is not between two measured lengths.  "peak MB" is what
one forward + backward adds to a fresh process.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import Selection, attend, lab, masks, select
from attnjax.lab import Cell, Claim, above, below, least, of, timing
from attnjax.lab.timing import BOTH, FORWARD, Timed
from attnjax.ops.sparse_select import (
    Branches,
    moba,
    moba_blocks,
    native_sparse_attention,
    nsa_blocks,
    seer_attention,
    seer_gate,
)

PAPERS = (138, 214, 248)

SHARE = 8  # one block in so many is selected
GATE = 32  # width of SeerAttention's gate
PARTS = ("whole", "select", "attend")


@dataclass(frozen=True)
class Config(lab.TimingConfig):
    methods: tuple[str, ...] = ("moba 128", "moba 512", "nsa", "seer")
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    backward_up_to: int = 8192  # longer ones are measured forward only
    heads: int = 8
    width: int = 64  # of a head
    memory_length: int = 4096  # where attention that keeps all scores can still run
    results: Path = Path("results/sparse_cost")

    def __post_init__(self):
        super().__post_init__()
        lab.choose("methods", self.methods, METHODS)
        if len(self.lengths) < 2 or min(self.lengths) < 1:
            raise lab.UserError(f"lengths: got {self.lengths}, expected two at least, above 0")
        if self.heads % 4:
            raise lab.UserError(f"heads: got {self.heads}, expected a multiple of 4 (groups)")

    @property
    def judged(self) -> int:
        """The length from which the targets are meant."""
        return min(8192, max(self.lengths))


@dataclass(frozen=True)
class Method:
    """A selector, its attention, and the op that is both.

    block_q, block_k   the blocks; group: how many query heads share a key head
    select             (q, k, top_k) -> Selection;  op: (q, k, v, top_k) -> out
    """

    block_q: int
    block_k: int
    group: int
    select: Callable[[jax.Array, jax.Array, int], Selection]
    op: Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
    fewest: int = 1  # blocks

    @property
    def rival(self) -> str:
        """Dense attention with as many key heads."""
        return "dense" if self.group == 1 else f"dense, groups of {self.group}"

    def top_k(self, T: int) -> int:
        return max(self.fewest, T // self.block_k // SHARE)

    def share(self, T: int) -> float:
        """Selected pairs of blocks over those that causal attention sees."""
        last = np.minimum((np.arange(-(-T // self.block_q)) + 1) * self.block_q, T) - 1
        seen = last // self.block_k + 1
        return float(np.minimum(seen, self.top_k(T)).sum() / seen.sum())


def gates(heads: int, width: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(1))
    draw = lambda key, W: jax.random.normal(key, (heads, W, GATE)) / 8
    return draw(keys[0], width), draw(keys[1], 3 * width)


def _moba(block: int) -> Method:
    return Method(
        1, block, 1,
        lambda q, k, top_k: moba_blocks(q, k, block, top_k),
        lambda q, k, v, top_k: moba(q, k, v, block_size=block, top_k=top_k, impl="blockwise"),
    )  # fmt: skip


def _nsa(q: jax.Array, k: jax.Array, v: jax.Array, top_k: int) -> jax.Array:
    gate = jax.nn.sigmoid(q[..., :3])
    return native_sparse_attention(q, k, v, gate, branches=Branches(top=top_k), impl="blockwise")


def _seer_select(q: jax.Array, k: jax.Array, top_k: int) -> Selection:
    scores = seer_gate(q, k, *gates(*q.shape[2:]), (64, 64), 10000.0)
    scores = select.causal_scores(scores, 64, 64)
    return select.top_k(scores, top_k, block_q=64, block_k=64)


def _seer(q: jax.Array, k: jax.Array, v: jax.Array, top_k: int) -> jax.Array:
    chosen = partial(select.top_k, k=top_k)
    return seer_attention(q, k, v, *gates(*q.shape[2:]), choose=chosen, impl="blockwise")


METHODS = {
    "moba 128": _moba(128),
    "moba 512": _moba(512),
    "nsa": Method(1, 64, 4, lambda q, k, top_k: nsa_blocks(q, k, Branches(top=top_k)), _nsa, 3),
    "seer": Method(64, 64, 1, _seer_select, _seer),
}

QUICK = replace(
    Config(), methods=("seer",), lengths=(512, 1024), backward_up_to=512, heads=4, width=16,
    rounds=3, memory_length=512,
)  # fmt: skip


def inputs(c: Config, T: int, group: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(T), 3)
    heads = (c.heads, c.heads // group, c.heads // group)
    return tuple(
        jax.random.normal(key, (1, T, n, c.width)) for key, n in zip(keys, heads, strict=True)
    )


def attention(method: Method, *args: Any) -> jax.Array:
    """Attention over a selection, whose arrays come last."""
    q, k, v, indices, valid = args
    blocks = Selection(indices, valid, method.block_q, method.block_k)
    return attend(q, k, v, blocks=blocks, mask=masks.causal, impl="blockwise")


def indices(method: Method, top_k: int, q: jax.Array, k: jax.Array) -> jax.Array:
    chosen = method.select(q, k, top_k)
    return jnp.where(chosen.valid, chosen.indices, -1)


def timed_dense(c: Config, group: int, T: int, mode: str, impl: Any = "blockwise") -> Timed:
    fn = partial(attend, mask=masks.causal, impl=impl)
    return timing.timed(fn, inputs(c, T, group), mode)


def timed(c: Config, name: str, part: str, T: int, mode: str) -> Timed:
    """The whole op, its selector, or attention over what that selects."""
    method = METHODS[name]
    top_k = method.top_k(T)
    args = inputs(c, T, method.group)
    if part == "whole":
        return timing.timed(lambda q, k, v: method.op(q, k, v, top_k), args, mode)
    if part == "select":
        return timing.timed(partial(indices, method, top_k), args[:2])
    chosen = jax.jit(method.select, static_argnums=2)(*args[:2], top_k)
    return timing.timed(partial(attention, method), (*args, chosen.indices, chosen.valid))


def cells(c: Config) -> list[Cell]:
    def rows(T: int) -> dict[str, Callable[[], Timed]]:
        found: dict[str, Callable[[], Timed]] = {}
        for mode in (FORWARD, BOTH) if c.backward_up_to >= T else (FORWARD,):
            for name in c.methods:
                method = METHODS[name]
                dense = partial(timed_dense, c, method.group, T, mode)
                found[f"{method.rival} {mode}"] = dense
                if T >= SHARE * method.block_k:  # an eighth of the blocks is one at least
                    for part in PARTS if mode == FORWARD else ("whole",):
                        row = f"{name} {part} {mode}"
                        found[row] = partial(timed, c, name, part, T, mode)
        return found

    return [Cell(T, rows(T)) for T in sorted(c.lengths)]


def growth(c: Config, seconds: timing.Rows) -> lab.Metrics:
    """Crossovers, shares of the blocks, and how far attention over them is from ideal."""
    table: lab.Metrics = {}
    for name in c.methods:
        method = METHODS[name]
        for mode in (FORWARD, BOTH):
            if whole := seconds.get(f"{name} whole {mode}"):
                found = timing.crossover(whole, seconds[f"{method.rival} {mode}"])
                table[f"{name} whole {mode}"] = {"crossover": found}
        table[f"{name} attend {FORWARD}"] = row = {}
        for T, each in seconds.get(f"{name} attend {FORWARD}", {}).items():
            row[f"share, T={T}"] = method.share(T)
            ideal = method.share(T) * seconds[f"{method.rival} {FORWARD}"][T]
            row[f"over ideal, T={T}"] = each / ideal
    return table


def peak(c: Config, name: str, T: int) -> float:
    if name in METHODS:
        return timing.peak_memory(timed, c, name, "whole", T, BOTH) / 1e6
    return timing.peak_memory(timed_dense, c, 1, T, BOTH, name) / 1e6


def memory(c: Config) -> timing.Once:
    T = c.memory_length
    chosen = [name for name in c.methods if T >= SHARE * METHODS[name].block_k]
    rows = {"all scores": "dense", "blockwise": "blockwise"} | {name: name for name in chosen}
    return {
        (f"{row}, {BOTH}, T={T}", "peak MB"): partial(peak, c, name, T)
        for row, name in rows.items()
    }


def claims(c: Config) -> tuple[Claim, ...]:
    """Speed from `judged` on, where it is measured; memory beside that of all scores."""
    told: list[Claim] = []
    where = {row: cell.length for cell in cells(c) for row in cell.makers}
    judged = lambda row: [f"T={T}" for T in c.lengths if c.judged <= T <= where.get(row, 0)]
    for name in c.methods:
        dense = METHODS[name].rival
        for mode in (FORWARD, BOTH):
            row = f"{name} whole {mode}"
            if lengths := judged(row):
                gains = [of(f"{dense} {mode}", at) / of(row, at) for at in lengths]
                says = f"{row}: faster than dense from T={c.judged} on"
                told.append(Claim(says, "faster", least(*gains), above(1.05)))
        row = f"{name} attend {FORWARD}"
        for at in judged(row)[-1:]:
            share = METHODS[name].share(int(at[2:]))
            says = f"{name}, {at}: attention takes its share of dense attention's time"
            ratio = of(row, at) / of(f"{dense} {FORWARD}", at)
            told.append(Claim(says, f"target: 1.3 x {share:.3f}", ratio, below(1.3 * share)))
    scores, _, *rows = memory(c)
    for row, measure in rows:
        says = f"{row}: half the memory of all scores"
        told.append(Claim(says, "target", of(row, measure) / of(*scores), below(0.5)))
    return tuple(told)


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Timing(cells, growth, memory), claims)

if __name__ == "__main__":
    STUDY.main()
