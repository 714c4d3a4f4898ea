"""The crossover is judged where both sides of it were measured, and only there."""

from dataclasses import replace

import pytest

from attnjax import lab
from attnjax.ops.linear_recurrent import taylor_crossover
from experiments.linear import taylor_crossover as experiment

CONFIG = replace(experiment.QUICK, lengths=(16, 64, 256, 1024, 4096))
STUDY = experiment.STUDY
TIMES = lab.Timing(experiment.cells, experiment.crossovers)


def judged(meets):
    """The word of each claim, where the forms of width H take the same time at `meets(H)`."""
    times = {f"direct, H={H}": {T: 1e-6 * T**2 for T in CONFIG.lengths} for H in CONFIG.widths}
    for H in CONFIG.widths:
        times[f"linear, H={H}"] = {T: 1e-6 * T * meets(H) for T in CONFIG.lengths}
    seeds = [TIMES.metrics(CONFIG, times, {})] * 3
    assert seeds[0]["linear, H=8"]["T=16"] == pytest.approx(1e-3 * 16 * meets(8))
    return [claim.judge(seeds).word for claim in STUDY.claims(CONFIG)]


def test_a_crossover_between_measured_lengths_is_judged():
    counted = lambda H: taylor_crossover(H).operations
    assert judged(counted) == ["holds"] * 4
    assert judged(lambda H: 6 * counted(H)) == ["fails", "fails", "holds", "holds"]
    assert judged(lambda H: 200)[2:] == ["fails", "holds"]


def test_one_that_was_not_seen_is_no_evidence():
    assert judged(lambda H: 5) == ["untested"] * 3 + ["holds"]
    assert judged(lambda H: 10_000) == ["untested"] * 3 + ["fails"]


def test_settings_that_say_nothing_are_refused():
    with pytest.raises(lab.UserError, match="lengths: got .*, expected two at least"):
        replace(CONFIG, lengths=(64,))
