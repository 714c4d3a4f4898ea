"""Time and peak memory of attention against length, beside jax.nn and PyTorch.

    python -m experiments.cost_curves            # two CPU cores: about 12 minutes, 10 GB
    python -m experiments.cost_curves --quick    # two CPU cores: under a minute; what CI runs
    python -m experiments.cost_curves --variants forgetting_attention cog_attention

Causal float32 attention, forward and forward + backward, for attnjax's implementations, the
variants asked for, jax.nn.dot_product_attention and (where installed) PyTorch's
scaled_dot_product_attention; then a causal window, where time should grow linearly; then linear
attention with a decay of each token and head, as `linear_attend` chooses, in chunks, and as the
recurrent scan, whose derivative is also taken by JAX. "crossover" is the length from which linear
attention is faster than blockwise softmax attention.

Times are medians of rounds in which all take turns, so that ratios hold on a noisy machine; in each
turn a run that is not counted goes first, since memory that another has just freed is slow. The
matrix product rate is that of a 2048 x 2048 float32 product in the same rounds; useful operations
are 4 H per allowed pair forward, 14 H forward + backward. Peak memory is what one forward +
backward at T = memory_length adds to a fresh process. The criteria are this project's own targets.

The table: ms at each T, the exponent of T over the longer lengths, and useful operations per second
over the matrix product rate ("share").
"""

import functools
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.progress import track

from attnjax import attend, catalogue, lab, linear_attend, masks
from attnjax.lab import Claim, Criterion, above, below, between
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

PAPERS = (10, 139)

MATMUL = 2048


@dataclass(frozen=True)
class Config:
    """What to measure; the defaults are the full run."""

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    window_lengths: tuple[int, ...] = (8192, 16384)
    window: int = 256
    linear_lengths: tuple[int, ...] = (1024, 4096, 8192, 65536)
    recurrent_up_to: int = 8192  # its derivative keeps T x H x D numbers for each head
    heads: int = 8
    width: int = 64  # of a head
    variants: tuple[str, ...] = ()  # names from the catalogue, measured blockwise
    dense_up_to: int = 4096  # dense forms need memory T x T
    rounds: int = 5
    memory_length: int = 32768  # of the memory measured with `memory_heads`; 0 measures none
    memory_heads: int = 4
    results: Path = Path("results/cost_curves")

    def __post_init__(self):
        lab.positive(self, "window heads width rounds")
        for name in ("lengths", "window_lengths", "linear_lengths"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise lab.UserError(f"{name}: got {getattr(self, name)}, expected lengths above 0")


QUICK = replace(
    Config(), lengths=(256, 512, 1024), window_lengths=(1024, 2048), window=64,
    linear_lengths=(256, 512, 1024), rounds=3, memory_length=0,
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """Something to measure: `make(T)` gives a causal attention function and its arguments."""

    name: str
    make: Callable[[int], tuple[Callable[..., Any], tuple[Any, ...]]]
    longest: float = math.inf


def inputs(config: Config, T: int, heads: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(T), 3)
    return tuple(jax.random.normal(key, (1, T, heads, config.width)) for key in keys)


def jax_nn(**options: Any) -> Callable[..., jax.Array]:
    return functools.partial(jax.nn.dot_product_attention, **options)


def subjects(config: Config) -> list[Subject]:
    """Causal attention: this package's implementations, variants, and the rivals."""
    made = lambda fn: lambda T: (fn, inputs(config, T, config.heads))
    causal = functools.partial(attend, mask=masks.causal)
    found = [
        Subject("blockwise", made(functools.partial(causal, impl="blockwise"))),
        Subject("dense", made(functools.partial(causal, impl="dense")), longest=config.dense_up_to),
        Subject("jax.nn", made(jax_nn(is_causal=True))),
    ]
    known = {op.name: op for op in catalogue.OPS}
    chosen = lab.choose("variants", config.variants, known) if config.variants else {}
    for name, variant in chosen.items():

        def make(T: int, variant: Any = variant) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            sizes = {"B": 1, "N": config.heads, "K": config.heads}
            drawn = variant.sample(**sizes, T=T, S=T, H=config.width, D=config.width)
            arrays = {k: x for k, x in drawn.items() if isinstance(x, jax.Array)}
            rest = {k: x for k, x in drawn.items() if k not in arrays}
            fn = lambda *args: variant.fn(
                **dict(zip(arrays, args, strict=True)), **rest, impl="blockwise"
            )
            return fn, tuple(arrays.values())

        found.append(Subject(name, make))
    return found


def window_subjects(config: Config) -> list[Subject]:
    """Attention of each token to itself and the `window` tokens before it."""
    made = lambda fn: lambda T: (fn, inputs(config, T, config.heads))
    mask = masks.causal & masks.window(config.window)
    return [
        Subject("window", made(functools.partial(attend, mask=mask, impl="blockwise"))),
        Subject(
            "window jax.nn",
            made(jax_nn(is_causal=True, local_window_size=(config.window, 0))),
            longest=max(config.lengths),
        ),
    ]


def linear_subjects(config: Config) -> list[Subject]:
    """Linear attention whose state decays by a number of each token and head."""

    def made(impl: str | None) -> Callable[[int], tuple[Callable[..., Any], tuple[Any, ...]]]:
        fn = lambda q, k, v, log_decay: linear_attend(q, k, v, log_decay=log_decay, impl=impl)

        def make(T: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            q, k, v = inputs(config, T, config.heads)
            return fn, (q, k / config.width, v, jax.nn.log_sigmoid(3 + q[..., 0]))

        return make

    return [
        Subject("linear", made(None)),
        Subject("linear chunked", made("chunked"), longest=config.recurrent_up_to),
        Subject("linear recurrent", made("recurrent"), longest=config.recurrent_up_to),
    ]


def torch_timed(config: Config, T: int, mode: str) -> Timed:
    """PyTorch's fused attention on the same sizes."""
    import torch  # type: ignore[import-not-found]

    torch.set_num_threads(os.cpu_count() or 1)
    shape = (1, config.heads, T, config.width)
    q, k, v = (torch.randn(shape, requires_grad=mode == BOTH) for _ in range(3))
    fused = torch.nn.functional.scaled_dot_product_attention

    def run() -> None:
        if mode == FORWARD:
            with torch.no_grad():
                fused(q, k, v, is_causal=True)
        else:
            torch.autograd.grad(fused(q, k, v, is_causal=True).sum(), (q, k, v))

    return run


def product_rate(seconds: float) -> float:
    """Operations per second of the reference product."""
    return 2 * MATMUL**3 / seconds


@dataclass(eq=False)
class Result:
    """Seconds by (subject, mode) and length; product rates by length; bytes by name."""

    seconds: dict[tuple[str, str], Seconds] = field(default_factory=dict)
    rates: dict[tuple[str, int], float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)


def cells(config: Config) -> Iterator[tuple[str, int, dict[str, Callable[[], Timed]]]]:
    """Each (mode, length) with what is compared there, not yet compiled."""
    torch_here = importlib.util.find_spec("torch") is not None
    for found, lengths in (
        (subjects(config), config.lengths),
        (window_subjects(config), config.window_lengths),
        (linear_subjects(config), config.linear_lengths),
    ):
        for mode in (FORWARD, BOTH):
            for T in lengths:
                makers: dict[str, Callable[[], Timed]] = {
                    s.name: lambda s=s, T=T, mode=mode: timed(*s.make(T), mode)
                    for s in found
                    if s.longest >= T
                }
                if torch_here and found[0].name == "blockwise":
                    makers["PyTorch"] = functools.partial(torch_timed, config, T, mode)
                yield mode, T, makers


def run(config: Config) -> Result:
    """Measures everything; the caller's process keeps no more than one length in memory."""
    result = Result()
    square = jnp.ones((MATMUL, MATMUL))
    product = timed(jnp.matmul, (square, square), FORWARD)
    for mode, T, makers in track(list(cells(config)), "measuring", transient=True):
        runs = {name: make() for name, make in makers.items()}
        medians = take_turns({**runs, "": product}, config.rounds)
        result.rates[mode, T] = product_rate(medians.pop(""))
        for name, seconds in medians.items():
            result.seconds.setdefault((name, mode), {})[T] = seconds
    if T := config.memory_length:
        small = replace(config, heads=config.memory_heads)
        result.memory["blockwise"] = peak_memory(first_of, subjects, small, T)
        for times in (1, 2):
            result.memory[f"linear x {times}"] = peak_memory(
                first_of, linear_subjects, small, times * T
            )
    return result


def first_of(subjects_of: Callable[[Config], list[Subject]], config: Config, T: int) -> Timed:
    """Forward and backward of the first subject."""
    return timed(*subjects_of(config)[0].make(T), BOTH)


# ------------------------------------------------------------------------------- what it says


def metrics(config: Config, result: Result) -> lab.Metrics:
    """Subject and mode -> ms at each length, the exponent, the share of the product rate."""
    table: lab.Metrics = {}
    for (name, mode), seconds in result.seconds.items():
        row = {f"T={T}": 1000 * s for T, s in seconds.items()}
        if len(seconds) > 1:
            row["T^"] = exponent(seconds)
        if name.startswith("linear"):
            row["crossover"] = crossover(seconds, result.seconds["blockwise", mode])
        elif not name.startswith("window"):
            T = max(seconds)
            pairs = T * (T + 1) / 2 * config.heads
            useful = (4 if mode == FORWARD else 14) * config.width * pairs
            row["share"] = useful / seconds[T] / result.rates[mode, T]
        table[f"{name} {mode}"] = row
    names = sorted({key for row in table.values() for key in row}, key=_column)
    return {who: {key: row[key] for key in names if key in row} for who, row in table.items()}


def _column(name: str) -> tuple[bool, int]:
    """Lengths in their order, then the rest."""
    return (True, 0) if "=" not in name else (False, int(name.split("=")[1]))


def claims(config: Config, result: Result) -> list[Claim]:
    """This project's targets; those for other sizes than they were set for are left out."""
    told: list[Claim] = []

    def faster(name: str, rival: str, T: int, mode: str, criterion: Criterion) -> None:
        mine, theirs = (result.seconds.get((who, mode), {}).get(T) for who in (name, rival))
        if mine and theirs:
            what = f"{name} {mode} at T={T}: times as fast as {rival}"
            told.append(Claim(what, "target", lambda m, r=theirs / mine: r, criterion))

    T = max(config.lengths)
    full = T == 8192 and (config.heads, config.width) == (8, 64)
    for mode, nn, torch, share in ((FORWARD, 7, 1.3, 0.7), (BOTH, 9, 1.2, 0.55)):
        faster("blockwise", "jax.nn", T, mode, above(nn if full else 1))
        faster("blockwise", "PyTorch", T, mode, above(torch if full else 1))
        if full:
            row, key = f"blockwise {mode}", "share"
            what = f"blockwise {mode} at T={T}: share of product rate"
            told.append(Claim(what, "target", lambda m, r=row, k=key: m[r][k], above(share)))
    if full and config.window == 256:
        faster("window", "window jax.nn", T, FORWARD, above(20))
        if {8192, 16384} <= set(config.window_lengths):
            for mode in (FORWARD, BOTH):
                times = result.seconds["window", mode]
                ratio = times[16384] / times[8192]
                what = f"window {mode}: time at T=16384 over T=8192"
                told.append(Claim(what, "target", lambda m, r=ratio: r, below(2.2)))
    faster("linear", "linear recurrent", T, FORWARD, above(0.95 if full else 0))
    faster("linear chunked", "linear recurrent", T, FORWARD, above(1 if full else 0))
    faster("linear", "linear recurrent", T, BOTH, above(15 if full else 1))
    if full and {4096, 65536} <= set(config.linear_lengths):
        for mode in (FORWARD, BOTH):
            times = result.seconds["linear", mode]
            ratio = (times[65536] / 65536) / (times[4096] / 4096)
            what = f"linear {mode}: time of a token at T=65536 over that at T=4096"
            told.append(Claim(what, "target", lambda m, r=ratio: r, between(1 / 1.3, 1.3)))
    if config.memory_length:
        twice = result.memory["linear x 2"] / result.memory["linear x 1"]
        what = f"linear {BOTH}: peak memory at T={2 * config.memory_length} over half of it"
        told.append(Claim(what, "target", lambda m, r=twice: r, below(2.2)))
        states = 8 * config.memory_length * config.memory_heads * config.width**2
        share = result.memory["linear x 2"] / states
        what = f"linear {BOTH} at T={2 * config.memory_length}: peak over that of T x H x D states"
        told.append(Claim(what, "target", lambda m, r=share: r, below(0.5)))
    if config.memory_length == 32768 and config.memory_heads == 4:
        peak = result.memory["blockwise"] / 1e6
        what = f"blockwise {BOTH} at T=32768, N=4: peak MB"
        told.append(Claim(what, "target", lambda m, p=peak: p, below(1500)))
    return told


def main(config: Config) -> None:
    """Measures, judges the targets, and writes table and plot."""
    began = time.monotonic()
    folder = lab.results_folder(config.results)
    result = run(config)
    lab.report(
        __doc__, claims(config, result), [metrics(config, result)], config=config,
        folder=folder, seconds=time.monotonic() - began,
        figures={"time": lab.time_curves(result.seconds, dashed=("window",))},
    )  # fmt: skip


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
