"""Attention in a causal window takes time that grows with the length, not with its square.

    python -m experiments.cost.window_cost

  The targets are this project's own: blockwise attention visits only tiles that the window touches,
      jax.nn.dot_product_attention with local_window_size all of them.

Float32, forward and forward + backward; each token sees itself and the `window` before it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from attnjax import attend, lab, masks
from attnjax.lab import Cell, Claim, Need, above, below, of, timing
from attnjax.lab.timing import BOTH, FORWARD, Timed

MODES = (FORWARD, BOTH)


@dataclass(frozen=True)
class Config(lab.TimingConfig):
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    window: int = 256
    heads: int = 8
    width: int = 64  # of a head
    scores_up_to: int = 8192  # jax.nn keeps T x T scores for each head
    results: Path = Path("results/window_cost")

    def __post_init__(self):
        super().__post_init__()
        if len(self.lengths) < 2 or min(self.lengths) < 1:
            raise lab.UserError(f"lengths: got {self.lengths}, expected two at least, above 0")


QUICK = replace(Config(), lengths=(256, 512), window=32, heads=4, scores_up_to=256, rounds=3)


def attentions(c: Config) -> dict[str, Callable[..., jax.Array]]:
    window = masks.causal & masks.window(c.window)
    local = {"is_causal": True, "local_window_size": (c.window, 0)}
    return {
        "window": functools.partial(attend, mask=window, impl="blockwise"),
        "no window": functools.partial(attend, mask=masks.causal, impl="blockwise"),
        "window, jax.nn": functools.partial(jax.nn.dot_product_attention, **local),
    }


def timed(c: Config, name: str, T: int, mode: str) -> Timed:
    keys = jax.random.split(jax.random.key(T), 3)
    args = tuple(jax.random.normal(key, (1, T, c.heads, c.width)) for key in keys)
    return timing.timed(attentions(c)[name], args, mode)


def cells(c: Config) -> list[Cell]:
    rows = lambda T: {
        f"{name} {mode}": partial(timed, c, name, T, mode)
        for name in attentions(c)
        for mode in MODES
        if "jax.nn" not in name or T <= c.scores_up_to
    }
    return [Cell(T, rows(T)) for T in c.lengths]


def growth(c: Config, seconds: timing.Rows) -> lab.Metrics:
    return {row: {"T^": timing.exponent(each)} for row, each in seconds.items()}


def claims(c: Config) -> tuple[Claim, ...]:
    half, full = sorted(c.lengths)[-2:]
    shared = max(T for T in c.lengths if T <= c.scores_up_to)
    told = []
    for mode in MODES:
        grown = lambda name, mode=mode: (
            of(f"{name} {mode}", f"T={full}") / of(f"{name} {mode}", f"T={half}")
        )
        at = f"T={shared}"
        rival = of(f"window, jax.nn {mode}", at) / of(f"window {mode}", at)
        square = Need("without a window it grows with the square", grown("no window"),
                      above(0.75 * (full / half) ** 2))  # fmt: skip
        told += [
            Claim(f"{mode} at {at}: 20 times as fast as jax.nn", "target", rival, above(20)),
            Claim(f"{mode}: time grows as the length, T={half} to {full}", "target",
                  grown("window"), below(1.1 * full / half), (square,)),
        ]  # fmt: skip
    return tuple(told)


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Timing(cells, growth), claims)

if __name__ == "__main__":
    STUDY.main()
