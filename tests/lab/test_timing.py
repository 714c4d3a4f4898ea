"""Turns, growth and crossovers of measured times, and memory of a process of its own."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.lab import timing


def test_the_exponent_is_the_slope_of_the_longer_half():
    assert timing.exponent({T: 3.0 * T**2 for T in (64, 128, 256)}) == pytest.approx(2)
    mixed = {1: 100.0, 2: 100.0, 4: 1.0, 8: 2.0, 16: 4.0}
    assert timing.exponent(mixed) == pytest.approx(1)


def test_turns_are_taken_and_the_first_run_of_each_does_not_count():
    order = []

    def sleeper(name, naps):
        def run():
            order.append(name)
            time.sleep(naps.pop(0))

        return run

    runs = {
        "a": sleeper("a", [0.2, 0.0, 0.2, 0.01, 0.2, 0.0]),
        "b": sleeper("b", [0.0, 0.05, 0.0, 0.05, 0.0, 0.05]),
    }
    seconds = timing.take_turns(runs, 3)
    assert order == list("aabbaabbaabb")
    assert [len(each) for each in seconds.values()] == [3, 3]
    assert min(seconds["a"]) < 0.01 <= max(seconds["a"]) and min(seconds["b"]) >= 0.05


def test_the_crossover_is_where_the_power_laws_meet():
    linear = {T: 1e-5 * T for T in (512, 4096, 8192)}
    square = {T: 1e-8 * T**2 for T in (512, 4096, 16384)}
    assert timing.crossover(linear, square) == pytest.approx(1000)


def test_a_crossover_that_was_not_measured_is_not_known():
    linear = {T: 1e-5 * T for T in (1024, 4096)}
    square = {T: 1e-8 * T**2 for T in (1024, 4096)}
    assert np.isnan(timing.crossover(linear, square))  # faster from the first length on
    assert np.isnan(timing.crossover(square, linear))  # never faster
    assert np.isnan(timing.crossover({512: 1.0}, square))


def test_modes_are_the_function_and_its_gradient():
    for mode in (timing.FORWARD, timing.BOTH):
        timing.timed(lambda x: jnp.sin(x), (jnp.ones(3),), mode)()


def holds(count):
    """Touches as many megabytes as told."""
    return lambda: np.ones(count * 125_000).sum()


def test_peak_memory_is_what_a_run_adds():
    assert 95e6 < timing.peak_memory(holds, 100) < 130e6
