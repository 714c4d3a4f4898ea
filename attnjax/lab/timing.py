"""Times and memory of JAX functions on a noisy machine, and what their growth says.

In each round all take turns, so that ratios of one round hold; in each turn a run that is not
counted goes first, since memory that another has just freed is slow.  `Timing` is what a study of
times runs: each round gives metrics as a seed does of one that trains.
"""

import json
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from attnjax.lab.arms import Place, Result
from attnjax.lab.claims import Metrics, Names
from attnjax.lab.files import write_atomically

FORWARD, BOTH = "fwd", "fwd+bwd"
Timed = Callable[[], None]  # runs once and waits for the result
Seconds = dict[int, float]  # by length
Rows = dict[str, Seconds]  # by row of the table
Once = Mapping[tuple[str, str], Callable[[], float]]  # (row, measure) -> how it is measured


def timed(fn: Callable[..., Any], args: tuple[Any, ...], mode: str = FORWARD) -> Timed:
    """A compiled run of fn, or of the gradient of its sum to all `args`."""
    loss = lambda *args: jnp.sum(fn(*args))
    both = jax.grad(loss, argnums=tuple(range(len(args))))
    compiled = jax.jit(fn if mode == FORWARD else both).lower(*args).compile()

    def run() -> None:
        jax.block_until_ready(compiled(*args))

    return run


def take_turns(runs: Mapping[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round; each runs once to warm up and once timed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def remembered(path: Path, measure: Callable[[], Any]) -> Any:
    """What was measured before an interruption and kept at `path`, or what is measured now."""
    if path.exists():
        return json.loads(path.read_text())
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found).encode())
    return found


@dataclass(frozen=True)
class Cell:
    """What takes turns at one length: a function that compiles, for each row of the table."""

    length: int
    makers: Mapping[str, Callable[[], Timed]]


def no_more(config: Any, seconds: Rows) -> Metrics:
    """Nothing is calculated from the times."""
    return {}


def nothing_else(config: Any) -> Once:
    """Nothing is measured besides times."""
    return {}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of every row at every length, round by round.

    cells    config -> the cells; one is in memory at a time
    derive   (config, seconds of a round: row -> length -> s) -> more measures, by row
    besides  config -> what is measured once, such as peak memory: (row, measure) -> a function
    """

    cells: Callable[[Any], Sequence[Cell]]
    derive: Callable[[Any, Rows], Metrics] = no_more
    besides: Callable[[Any], Once] = nothing_else

    def __call__(self, config: Any, key: str, place: Place) -> Result:
        rounds = config.rounds
        folder = place.runs(key)
        times: list[Rows] = [{} for _ in range(rounds)]
        result = Result([])
        for index, cell in enumerate(track(self.cells(config), "measuring", transient=True)):
            turns = lambda cell=cell: take_turns({n: m() for n, m in cell.makers.items()}, rounds)
            for row, seconds in remembered(folder / f"{index}-{rounds}.json", turns).items():
                result.seconds.setdefault(row, {})[cell.length] = seconds
                for each, value in zip(times, seconds, strict=True):
                    each.setdefault(row, {})[cell.length] = value
        besides = {
            name: remembered(folder / f"besides-{index}.json", measure)
            for index, (name, measure) in enumerate(self.besides(config).items())
        }
        result.seeds = [self.metrics(config, each, besides) for each in times]
        if place.log is not None:
            for index, metrics in enumerate(result.seeds):
                for row, numbers in metrics.items():
                    place.log(row, index, numbers)
        return result

    def metrics(
        self, config: Any, times: Rows, besides: Mapping[tuple[str, str], float]
    ) -> Metrics:
        """Row -> measure -> value, from the seconds of one round."""
        table = {row: {f"T={T}": 1000 * s for T, s in each.items()} for row, each in times.items()}
        for row, values in self.derive(config, times).items():
            table[row] = table.get(row, {}) | values
        for (row, measure), value in besides.items():
            table.setdefault(row, {})[measure] = value
        return table

    def null(self, config: Any, power: float = 2.0) -> tuple[Rows, dict[tuple[str, str], float]]:
        """Times and besides of a world in which all are alike, and grow as T^power."""
        times: Rows = {}
        for cell in self.cells(config):
            for row in cell.makers:
                times.setdefault(row, {})[cell.length] = 1e-9 * cell.length**power
        return times, dict.fromkeys(self.besides(config), 1.0)

    def names(self, config: Any) -> Names:
        """Row -> its measures."""
        found = self.metrics(config, *self.null(config))
        return {row: list(values) for row, values in found.items()}


def exponent(seconds: Seconds) -> float:
    """The slope of log time against log T over the longer half of the lengths (two at least)."""
    lengths = sorted(seconds)[-max(2, len(seconds) // 2 + 1) :]
    if len(lengths) < 2:
        return math.nan
    return float(np.polyfit(np.log(lengths), np.log([seconds[T] for T in lengths]), 1)[0])


def crossover(seconds: Seconds, rival: Seconds) -> float:
    """The length from which the rival takes longer, on a power law between measured lengths.

    nan where it is not between two of them: what lies beyond was not seen.
    """
    shared = sorted(set(seconds) & set(rival))
    gain = {T: math.log(rival[T] / seconds[T]) for T in shared}
    last = next((T for T in reversed(shared) if gain[T] < 0), None)
    after = [T for T in shared if last is not None and last < T]
    if last is None or not after:
        return math.nan
    T = after[0]
    return last * (T / last) ** (gain[last] / (gain[last] - gain[T]))


def peak_memory(make: Callable[..., Timed], *args: Any) -> int:
    """Bytes that compiling and running `make(*args)` once adds to a fresh process's peak.

    `make` and its arguments are sent to that process, so they have to be picklable.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (make, *args))


def _measure(make: Callable[..., Timed], *args: Any) -> int:
    jnp.zeros(()).block_until_ready()
    before = _peak_bytes()
    make(*args)()
    return _peak_bytes() - before


def _peak_bytes() -> int:
    """The most memory this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage counts what the parent held before exec
        [line] = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held
