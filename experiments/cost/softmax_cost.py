"""Time and memory of softmax attention against length, beside jax.nn and PyTorch.

    python -m experiments.cost.softmax_cost
    python -m experiments.cost.softmax_cost --variants forgetting_attention cog_attention

  The targets are this project's own: blockwise attention beside jax.nn.dot_product_attention, which
      keeps all scores, and PyTorch's fused scaled_dot_product_attention, where it is installed.

Causal float32 attention, forward and forward + backward.  "share" is useful operations per second,
4 H per allowed pair forward and 14 H forward + backward, over those of a 2048 x 2048 float32
product in the same round.  "peak MB" is what one forward + backward adds to a fresh process.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from attnjax import attend, catalogue, lab, masks
from attnjax.lab import Cell, Claim, Need, above, below, of, timing
from attnjax.lab.timing import BOTH, FORWARD, Timed

MATMUL = 2048
FLOPS = {FORWARD: 4, BOTH: 14}  # for each allowed pair and channel
Made = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments


@dataclass(frozen=True)
class Config(lab.TimingConfig):
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    heads: int = 8
    width: int = 64  # of a head
    variants: tuple[str, ...] = ()  # names from the catalogue, measured blockwise
    dense_up_to: int = 2048  # dense forms need memory T x T
    memory_length: int = 4096  # of what keeps all scores; four times that of what does not
    memory_heads: int = 4
    results: Path = Path("results/softmax_cost")

    def __post_init__(self):
        super().__post_init__()
        if len(self.lengths) < 2 or min(self.lengths) < 1:
            raise lab.UserError(f"lengths: got {self.lengths}, expected two at least, above 0")
        if self.variants:
            lab.choose("variants", self.variants, {op.name: op for op in catalogue.OPS})


QUICK = replace(
    Config(), lengths=(256, 512), heads=4, dense_up_to=256, rounds=3, memory_length=128
)  # fmt: skip


def inputs(c: Config, T: int, heads: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(T), 3)
    return tuple(jax.random.normal(key, (1, T, heads, c.width)) for key in keys)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "blockwise": functools.partial(attend, mask=masks.causal, impl="blockwise"),
    "dense": functools.partial(attend, mask=masks.causal, impl="dense"),
    "jax.nn": functools.partial(jax.nn.dot_product_attention, is_causal=True),
}


def variant(c: Config, name: str, T: int) -> Made:
    """An op of the catalogue and its drawn inputs; gradients go to its arrays."""
    op = next(op for op in catalogue.OPS if op.name == name)
    drawn = op.sample(B=1, N=c.heads, K=c.heads, T=T, S=T, H=c.width, D=c.width)
    arrays = {key: jnp.asarray(x) for key, x in drawn.items() if hasattr(x, "dtype")}
    rest = {key: x for key, x in drawn.items() if key not in arrays}
    fn = lambda *args: op.fn(**dict(zip(arrays, args, strict=True)), **rest, impl="blockwise")
    return fn, tuple(arrays.values())


def timed(c: Config, name: str, T: int, mode: str) -> Timed:
    if name == "PyTorch":
        return timed_torch(c, T, mode)
    if name in IMPLEMENTATIONS:
        return timing.timed(IMPLEMENTATIONS[name], inputs(c, T, c.heads), mode)
    return timing.timed(*variant(c, name, T), mode)


def timed_torch(c: Config, T: int, mode: str) -> Timed:
    import torch  # type: ignore[import-not-found]

    torch.set_num_threads(os.cpu_count() or 1)
    shape = (1, c.heads, T, c.width)
    q, k, v = (torch.randn(shape, requires_grad=mode == BOTH) for _ in range(3))
    fused = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)

    def run() -> None:
        with torch.set_grad_enabled(mode == BOTH):
            out = fused(q, k, v)
        if mode == BOTH:
            torch.autograd.grad(out.sum(), (q, k, v))

    return run


def names(c: Config) -> tuple[str, ...]:
    there = importlib.util.find_spec("torch") is not None
    return (*IMPLEMENTATIONS, *c.variants, *(("PyTorch",) if there else ()))


def cells(c: Config) -> list[Cell]:
    square = jnp.ones((MATMUL, MATMUL))
    product = {"product": lambda: timing.timed(jnp.matmul, (square, square))}
    rows = lambda T: {
        f"{name} {mode}": partial(timed, c, name, T, mode)
        for name in names(c)
        for mode in FLOPS
        if name != "dense" or T <= c.dense_up_to
    }
    return [Cell(T, rows(T) | product) for T in c.lengths]


def growth(c: Config, seconds: timing.Rows) -> lab.Metrics:
    """The exponent of T, and the share of the product's rate at the longest length."""
    table: lab.Metrics = {}
    for row, each in seconds.items():
        T, mode = max(each), row.rpartition(" ")[2]
        if mode in FLOPS:
            useful = FLOPS[mode] * c.width * c.heads * T * (T + 1) / 2
            share = useful / each[T] / (2 * MATMUL**3 / seconds["product"][T])
            table[row] = {"T^": timing.exponent(each), "share": share}
    return table


def memory(c: Config) -> timing.Once:
    """Peak memory of blockwise attention and of jax.nn, of this at a fourth of the length."""
    small = replace(c, heads=c.memory_heads)
    peak = lambda name, T: timing.peak_memory(timed, small, name, T, BOTH) / 1e6
    T = c.memory_length
    return {
        (f"jax.nn, N={c.memory_heads}, T={T}", "peak MB"): lambda: peak("jax.nn", T),
        (f"blockwise, N={c.memory_heads}, T={4 * T}", "peak MB"): lambda: peak("blockwise", 4 * T),
    }


def claims(c: Config) -> tuple[Claim, ...]:
    """Targets for two cores; of PyTorch where it is."""
    T = max(c.lengths)
    at = f"T={T}"
    told = []
    for mode, nn, torch, share in ((FORWARD, 7, 1.3, 0.7), (BOTH, 9, 1.2, 0.55)):
        mine = f"blockwise {mode}"
        for rival, times in (("jax.nn", nn), ("PyTorch", torch)):
            if rival in names(c):
                ratio = of(f"{rival} {mode}", at) / of(mine, at)
                says = f"{mine} at {at}: {times} times as fast as {rival}"
                told.append(Claim(says, "target", ratio, above(times)))
        scores = Need("keeping all scores is far from it",
                      of(f"jax.nn {mode}", "share"), below(share / 2))  # fmt: skip
        says = f"{mine} at {at}: near the rate of a matrix product"
        told.append(Claim(says, "target", of(mine, "share"), above(share), (scores,)))
    theirs, ours = (of(row, measure) for row, measure in memory(c))
    says = f"blockwise {BOTH}: four times the length in a third of jax.nn's memory"
    return (*told, Claim(says, "target", ours / theirs, below(1 / 3)))


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Timing(cells, growth, memory), claims)

if __name__ == "__main__":
    STUDY.main()
