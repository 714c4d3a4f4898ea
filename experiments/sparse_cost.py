"""What attention over selected blocks costs: selector, attention and whole op, beside dense.

    python -m experiments.sparse_cost            # two CPU cores: about 25 minutes, 6 GB
    python -m experiments.sparse_cost --quick    # two CPU cores: under a minute; what CI runs

  Lu et al. 2025, "MoBA", arXiv:2502.13189; Yuan et al. 2025, "Native Sparse Attention",
      arXiv:2502.11089; Gao et al. 2024, "SeerAttention", arXiv:2410.13276: faster than full
      attention at long lengths. Their users ask from which length on, with everything counted.

Causal float32 attention in which every query selects one eighth of the blocks, beside dense
blockwise attention on the same arrays: MoBA with blocks of 128 and of 512 keys for each query and
head; NSA with its defaults (compression 32 by 16, blocks of 64 shared by four heads, window 512);
SeerAttention with blocks of 64 queries and keys, its gate untrained. Keys are random, so blocks are
chosen evenly; K = N, but N/4 for NSA, whose rival then has as few.

"select" is the time until the selection is there, "attend" that of attention over it, "whole" that
of the op in one program. "share" is how many of the visible pairs of blocks are selected: causal
attention sees half of all, so an eighth of the blocks is nearly a quarter of those seen. "over
ideal" is the attention's time over share x dense time. "crossover" is the length from which the
whole op is faster than dense, on power laws through the times measured; below the shortest length,
or above the longest, it is extrapolated. Peak memory is what one forward + backward adds to a fresh
process. Times are medians of rounds in which all take turns.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from attnjax import Selection, attend, lab, masks, select
from attnjax.lab import Claim, above, below
from attnjax.lab.timing import (
    BOTH,
    FORWARD,
    Seconds,
    Timed,
    crossover,
    exponent,
    peak_memory,
    take_turns,
    timed,
)
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
Arrays = tuple[jax.Array, ...]


@dataclass(frozen=True)
class Config:
    """What to measure; the defaults are the full run."""

    methods: tuple[str, ...] = ("moba 128", "moba 512", "nsa", "seer")
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    backward_up_to: int = 16384  # longer ones are measured forward only
    heads: int = 8
    width: int = 64  # of a head
    rounds: int = 3
    rounds_up_to: int = 16384  # longer ones have a single round
    memory_lengths: tuple[int, ...] = (16384, 32768)
    results: Path = Path("results/sparse_cost")

    def __post_init__(self):
        lab.positive(self, "heads width rounds")
        lab.choose("methods", self.methods, METHODS)
        for name in ("lengths", "memory_lengths"):
            if min(getattr(self, name), default=1) < 1:
                raise lab.UserError(f"{name}: got {getattr(self, name)}, expected lengths above 0")
        if len(self.lengths) < 2:
            raise lab.UserError(f"lengths: got {self.lengths}, expected two at least")
        if self.heads % 4:
            raise lab.UserError(f"heads: got {self.heads}, expected a multiple of 4 (groups)")


@dataclass(frozen=True)
class Method:
    """A selector, its attention, and the op that is both.

    block_q, block_k   the blocks; group: how many query heads share a key head
    select             (q, k, top_k) -> Selection;  whole: (q, k, v, top_k) -> out
    """

    block_q: int
    block_k: int
    group: int
    select: Callable[[jax.Array, jax.Array, int], Selection]
    whole: Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]

    def top_k(self, T: int) -> int:
        return max(1, T // self.block_k // SHARE)

    def runs(self, T: int) -> bool:
        """Whether an eighth of the blocks is one at least."""
        return T >= SHARE * self.block_k


def _moba(block: int) -> Method:
    return Method(
        1, block, 1,
        lambda q, k, top_k: moba_blocks(q, k, block, top_k),
        lambda q, k, v, top_k: moba(q, k, v, block_size=block, top_k=top_k, impl="blockwise"),
    )  # fmt: skip


def _gates(heads: int, width: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(1))
    draw = lambda key, W: jax.random.normal(key, (heads, W, GATE)) / 8
    return draw(keys[0], width), draw(keys[1], 3 * width)


def _seer_select(q: jax.Array, k: jax.Array, top_k: int) -> Selection:
    w_q, w_k = _gates(*q.shape[2:])
    scores = seer_gate(q, k, w_q, w_k, (64, 64), 10000.0)
    scores = select.causal_scores(scores, 64, 64)
    return select.top_k(scores, top_k, block_q=64, block_k=64)


def _seer_whole(q: jax.Array, k: jax.Array, v: jax.Array, top_k: int) -> jax.Array:
    chosen = functools.partial(select.top_k, k=top_k)
    return seer_attention(q, k, v, *_gates(*q.shape[2:]), choose=chosen, impl="blockwise")


METHODS = {
    "moba 128": _moba(128),
    "moba 512": _moba(512),
    "nsa": Method(
        1, 64, 4,
        lambda q, k, top_k: nsa_blocks(q, k, Branches(top=max(3, top_k))),
        lambda q, k, v, top_k: native_sparse_attention(
            q, k, v, jax.nn.sigmoid(q[..., :3]), branches=Branches(top=max(3, top_k)),
            impl="blockwise",
        ),
    ),
    "seer": Method(64, 64, 1, _seer_select, _seer_whole),
}  # fmt: skip


QUICK = replace(
    Config(), methods=("moba 128", "nsa"), lengths=(1024, 2048), backward_up_to=1024,
    heads=4, width=16, rounds=1, memory_lengths=(),
)  # fmt: skip


def inputs(config: Config, T: int, group: int) -> Arrays:
    keys = jax.random.split(jax.random.key(T), 3)
    heads = (config.heads, config.heads // group, config.heads // group)
    return tuple(
        jax.random.normal(key, (1, T, n, config.width)) for key, n in zip(keys, heads, strict=True)
    )


def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return attend(q, k, v, mask=masks.causal, impl="blockwise")


def attention(method: Method, *args: Any) -> jax.Array:
    """Attention over a selection; its arrays come last, since gradients go to the others."""
    q, k, v, indices, valid = args
    blocks = Selection(indices, valid, method.block_q, method.block_k)
    return attend(q, k, v, blocks=blocks, mask=masks.causal, impl="blockwise")


def share(method: Method, chosen: Selection, T: int) -> float:
    """Selected pairs of blocks over those that causal attention sees."""
    U, n = chosen.indices.shape[1], -(-T // method.block_k)
    last = np.minimum((np.arange(U) + 1) * method.block_q, T) - 1
    visible = np.minimum(last // method.block_k + 1, n).sum()
    B, _, X, _ = chosen.indices.shape
    return int(chosen.valid.sum()) / (B * X * int(visible))


@dataclass(eq=False)
class Result:
    """Seconds by (name, mode) and length, shares by (method, length), bytes by (name, length)."""

    seconds: dict[tuple[str, str], Seconds] = field(default_factory=dict)
    shares: dict[tuple[str, int], float] = field(default_factory=dict)
    memory: dict[tuple[str, int], int] = field(default_factory=dict)


def rival(method: Method) -> str:
    """The name of dense attention with as many key heads."""
    return "dense" if method.group == 1 else f"dense, groups of {method.group}"


def run(config: Config) -> Result:
    """Measures everything; one length is in memory at a time."""
    result = Result()
    methods = lab.choose("methods", config.methods, METHODS)
    cells = [(m, T) for T in config.lengths for m in (FORWARD, BOTH)
             if m == FORWARD or T <= config.backward_up_to]  # fmt: skip
    for mode, T in track(cells, "measuring", transient=True):
        runs: dict[str, Timed] = {}
        for name, method in methods.items():
            args = inputs(config, T, method.group)
            runs[rival(method)] = timed(dense, args, mode)
            if not method.runs(T):
                continue
            top_k = method.top_k(T)
            whole = functools.partial(_whole, method, top_k)
            runs[f"{name} whole"] = timed(whole, args, mode)
            if mode == FORWARD:
                chosen = jax.jit(method.select, static_argnums=2)(*args[:2], top_k)
                result.shares[name, T] = share(method, chosen, T)
                selector = functools.partial(_indices, method, top_k)
                runs[f"{name} select"] = timed(selector, args[:2])
                over = functools.partial(attention, method)
                runs[f"{name} attend"] = timed(over, (*args, chosen.indices, chosen.valid))
        rounds = config.rounds if T <= config.rounds_up_to else 1
        for name, seconds in take_turns(runs, rounds).items():
            result.seconds.setdefault((name, mode), {})[T] = seconds
    for name, T in itertools.product(("dense", *config.methods), config.memory_lengths):
        result.memory[name, T] = peak_memory(both, config, name, T)
    return result


def _whole(method: Method, top_k: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return method.whole(q, k, v, top_k)


def _indices(method: Method, top_k: int, q: jax.Array, k: jax.Array) -> jax.Array:
    chosen = method.select(q, k, top_k)
    return jnp.where(chosen.valid, chosen.indices, -1)


def both(config: Config, name: str, T: int) -> Timed:
    """Forward and backward of the op with this name."""
    if name == "dense":
        return timed(dense, inputs(config, T, 1), BOTH)
    method = METHODS[name]
    whole = functools.partial(_whole, method, method.top_k(T))
    return timed(whole, inputs(config, T, method.group), BOTH)


# ------------------------------------------------------------------------------- what it says


def metrics(config: Config, result: Result) -> lab.Metrics:
    """Milliseconds at each length; exponent, crossover, share and peak memory."""
    table: lab.Metrics = {}
    for (name, mode), seconds in result.seconds.items():
        row = {f"T={T}": 1000 * s for T, s in seconds.items()}
        row["T^"] = exponent(seconds)
        head, _, part = name.rpartition(" ")
        if part == "whole":
            row["crossover"] = crossover(seconds, result.seconds[rival(METHODS[head]), mode])
        table[f"{name} {mode}"] = row
    for name in config.methods:
        over = {T: over_ideal(result, name, T) for T in config.lengths if METHODS[name].runs(T)}
        table[f"{name} over ideal"] = {f"T={T}": x for T, x in over.items()}
        table[f"{name} share"] = {f"T={T}": result.shares[name, T] for T in over}
    for (name, T), count in result.memory.items():
        table.setdefault(f"{name} peak MB", {})[f"T={T}"] = count / 1e6
    return table


def over_ideal(result: Result, name: str, T: int) -> float:
    """Time of attention over the selection, over share x time of dense attention."""
    full = result.seconds[rival(METHODS[name]), FORWARD][T]
    return result.seconds[f"{name} attend", FORWARD][T] / full / result.shares[name, T]


def gains(result: Result, name: str, mode: str, start: int) -> dict[int, float]:
    """Time of dense over that of the whole op, at lengths from `start` on."""
    whole = result.seconds.get((f"{name} whole", mode), {})
    full = result.seconds.get((rival(METHODS[name]), mode), {})
    return {T: full[T] / seconds for T, seconds in whole.items() if T >= start}


def claims(config: Config, result: Result) -> list[Claim]:
    """This project's targets; lengths below theirs are only reported."""
    told: list[Claim] = []
    start = 8192 if max(config.lengths) >= 8192 else max(config.lengths)
    told_of = lambda x: lambda m: x
    for name in config.methods:
        for mode in (FORWARD, BOTH):
            if found := gains(result, name, mode, start):
                worst = min(found, key=found.__getitem__)
                what = f"{name} {mode}: dense over whole op from T={start} on, worst at T={worst}"
                told.append(Claim(what, "faster", told_of(found[worst]), above(1)))
    for name in config.methods:
        ideals = [over_ideal(result, name, T) for T in config.lengths
                  if T >= start and METHODS[name].runs(T)]  # fmt: skip
        if ideals:
            what = f"{name}: attention over share x dense from T={start} on, median"
            told.append(Claim(what, "target", told_of(float(np.median(ideals))), below(1.3)))
    if len(config.memory_lengths) == 2:
        short, long = sorted(config.memory_lengths)
        for name in config.methods:
            grown = result.memory[name, long] / result.memory[name, short]
            growth = math.log(grown) / math.log(long / short)
            what = f"{name} {BOTH}: exponent of peak memory, T={short} to {long}"
            told.append(Claim(what, "linear", told_of(growth), below(1.15)))
    return told


def main(config: Config) -> None:
    """Measures, judges the targets, and writes table and plot."""
    began = time.monotonic()
    folder = lab.results_folder(config.results)
    result = run(config)
    curves = {key: x for key, x in result.seconds.items() if "select" not in key[0]}
    lab.report(
        __doc__, claims(config, result), [metrics(config, result)], config=config,
        folder=folder, seconds=time.monotonic() - began,
        figures={"time": lab.time_curves(curves, dashed=("dense",))},
    )  # fmt: skip


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
