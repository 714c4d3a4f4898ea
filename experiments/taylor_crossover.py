"""Where TaylorShift's linear form becomes faster than its quadratic one: counted, and measured.

    python -m experiments.taylor_crossover            # two CPU cores: about 3 minutes
    python -m experiments.taylor_crossover --quick    # two CPU cores: under a minute; what CI runs

  Nauen, Palacio and Dengel 2024, "TaylorShift", arXiv:2403.02920: both forms compute the same; the
      linear one needs fewer operations from a length near H^2 on, and is measured to be faster from
      about 1700 tokens on for usual widths H.

Forward times of one head, float32, medians of rounds in which all take turns.  The measured length
is where the linear form begins to be faster: the shortest one if it is faster there already.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from rich.progress import track

from attnjax import lab
from attnjax.lab import Claim, below, between
from attnjax.lab.timing import take_turns, timed
from attnjax.ops.linear_recurrent import taylor_crossover, taylor_shift, taylor_shift_direct

PAPERS = (234,)

FORMS = {"direct": taylor_shift_direct, "linear": taylor_shift}


@dataclass(frozen=True)
class Config:
    """What to measure; the defaults are the full run."""

    widths: tuple[int, ...] = (16, 32, 48)  # of a head
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    rounds: int = 5
    results: Path = Path("results/taylor_crossover")

    def __post_init__(self):
        lab.positive(self, "rounds")
        for name in ("widths", "lengths"):
            if len(getattr(self, name)) < 2 or min(getattr(self, name)) < 1:
                raise lab.UserError(f"{name}: got {getattr(self, name)}, expected two at least")


QUICK = replace(Config(), widths=(8, 16), lengths=(256, 512, 1024), rounds=3)

Times = dict[tuple[str, int], dict[int, float]]  # (form, width) -> length -> seconds


def run(config: Config) -> tuple[Times, float]:
    """Times of both forms, and the largest difference of their results."""
    times: Times = {}
    apart = 0.0
    cells = [(H, T) for H in config.widths for T in config.lengths]
    for H, T in track(cells, "measuring", transient=True):
        q, k, v = jax.random.normal(jax.random.key(H), (3, 1, T, 1, H))
        args = (q, k, v, jnp.ones(1))
        for name, seconds in take_turns(
            {name: timed(fn, args) for name, fn in FORMS.items()}, config.rounds
        ).items():
            times.setdefault((name, H), {})[T] = seconds
        direct, linear = (jax.jit(fn)(*args) for fn in FORMS.values())
        apart = max(apart, float(jnp.abs(direct - linear).max()))
    return times, apart


def meeting(direct: dict[int, float], linear: dict[int, float]) -> float:
    """The first length at which the linear form is faster, between neighbors by power laws."""
    before = None
    for T in sorted(direct):
        gain = math.log(direct[T] / linear[T])
        if gain >= 0:
            if before is None:
                return T
            T0, gain0 = before
            return T0 * (T / T0) ** (gain0 / (gain0 - gain))
        before = T, gain
    return math.inf


def metrics(config: Config, times: Times) -> lab.Metrics:
    """Milliseconds at each length; at each width the length where operations, and times, meet."""
    table: lab.Metrics = {
        f"{name}, H={H}": {f"T={T}": 1000 * s for T, s in times[name, H].items()}
        for H in config.widths
        for name in FORMS
    }
    for H in config.widths:
        found = meeting(times["direct", H], times["linear", H])
        row = {"counted": taylor_crossover(H).operations, "measured": found}
        table[f"linear, H={H}"] |= row
    return table


def claims(config: Config, apart: float) -> list[Claim]:
    """One length for each width, and that it grows with the width."""
    told = [Claim("largest difference of the forms", "none", lambda m: apart, below(1e-3))]
    measured = lambda H: lambda m: m[f"linear, H={H}"]["measured"]
    for H in config.widths:
        counted = taylor_crossover(H).operations
        told.append(
            Claim(
                f"H={H}: measured crossover over the counted {counted:.0f}",
                "near 1, or above",
                lambda m, H=H, n=counted: measured(H)(m) / n,
                between(0.5, 8),
            )
        )
    return told


def curves(config: Config, times: Times) -> Figure:
    """Time against length, both axes logarithmic; the counted crossovers as lines."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for color, H in zip(lab.COLORS, config.widths, strict=False):
        for name, style in zip(FORMS, ("--", "-"), strict=True):
            seconds = times[name, H]
            axes.plot(list(seconds), list(seconds.values()), style, color=color, marker="o",
                      markersize=4, label=f"{name}, H={H}")  # fmt: skip
        axes.axvline(taylor_crossover(H).operations, color=color, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="T (tokens)", ylabel="time (s)")
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def main(config: Config) -> None:
    """Measures, judges, and writes table and plot."""
    began = time.monotonic()
    folder = lab.results_folder(config.results)
    times, apart = run(config)
    lab.report(
        __doc__,
        claims(config, apart),
        [metrics(config, times)],
        config=config,
        folder=folder,
        seconds=time.monotonic() - began,
        figures={"time": curves(config, times)},
    )


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
