"""Times and memory of JAX functions on a noisy machine, and what their growth says.

Times are medians of rounds in which all take turns, so that ratios hold; in each turn a run that is
not counted goes first, since memory that another has just freed is slow.
"""

import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORWARD, BOTH = "fwd", "fwd+bwd"
Timed = Callable[[], None]  # runs once and waits for the result
Seconds = dict[int, float]  # by length


def timed(fn: Callable[..., Any], args: tuple[Any, ...], mode: str = FORWARD) -> Timed:
    """A compiled run of fn, or of the gradient of its sum to all `args`."""
    loss = lambda *args: jnp.sum(fn(*args))
    both = jax.grad(loss, argnums=tuple(range(len(args))))
    compiled = jax.jit(fn if mode == FORWARD else both).lower(*args).compile()

    def run() -> None:
        jax.block_until_ready(compiled(*args))

    return run


def take_turns(runs: dict[str, Timed], rounds: int) -> dict[str, float]:
    """Median seconds of each; in every round each runs in turn, once to warm up and once timed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}


def exponent(seconds: Seconds) -> float:
    """The slope of log time against log T over the longer half of the lengths (two at least)."""
    lengths = sorted(seconds)[-max(2, len(seconds) // 2 + 1) :]
    if len(lengths) < 2:
        return math.nan
    return float(np.polyfit(np.log(lengths), np.log([seconds[T] for T in lengths]), 1)[0])


def crossover(seconds: Seconds, rival: Seconds) -> float:
    """The length from which the rival takes longer, on power laws through the measured lengths."""
    shared = sorted(set(seconds) & set(rival))
    if len(shared) < 2:
        return math.nan
    gain = [math.log(rival[T] / seconds[T]) for T in shared]
    slope, start = np.polyfit(np.log(shared), gain, 1)
    return math.exp(-start / slope) if slope > 0 else math.inf


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
