"""Claims as data: quantities, intervals, needs, and the three words."""

import numpy as np
import pytest
from scipy import stats

from attnjax import lab
from attnjax.lab import Claim, Need, above, below, between, claims, least, of


def worlds(**values):
    """The metrics of as many seeds as an arm has values of its loss."""
    seeds = zip(*values.values(), strict=True)
    return [{arm: {"loss": x} for arm, x in zip(values, each, strict=True)} for each in seeds]


loss = lambda arm: of(arm, "loss")


def test_quantities_are_differences_and_ratios_that_name_what_they_read():
    metrics = {"a": {"loss": 3.0}, "b": {"loss": 2.0}, "c": {"loss": 0.0}}
    assert (loss("a") - loss("b"))(metrics) == 1.0
    assert ((loss("a") - loss("b")) / (loss("b") - loss("c")))(metrics) == 0.5
    assert np.isnan((loss("a") / loss("c"))(metrics))
    assert least(loss("a"), loss("b"))(metrics) == 2
    told = (loss("a") - loss("b")) / (loss("b") - loss("c"))
    assert str(told) == "loss of [a] - loss of [b] / (loss of [b] - loss of [c])"
    assert told.reads == (("a", "loss"), ("b", "loss"), ("b", "loss"), ("c", "loss"))


def test_the_interval_is_students():
    values = [1.0, 2.0, 6.0, 4.0]
    want = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(claims.interval(values), want)
    assert claims.interval([1.0]) == (-np.inf, np.inf)
    assert np.isnan(claims.interval([1.0, np.nan])).all()


@pytest.mark.parametrize(
    ("a", "word", "why"),
    [
        ((3.0, 3.1, 3.2), "holds", ""),
        ((2.0, 2.1, 2.2), "fails", ""),
        ((2.0, 3.1, 4.2), "untested", "the interval is on both sides of above 0.5"),
        ((3.0, 3.1), "untested", "2 of the 3 seeds that a verdict needs"),
        ((3.0, np.nan, 3.0), "untested", "the interval is on both sides"),
    ],
)
def test_the_whole_interval_decides(a, word, why):
    claim = Claim("a is worse", "worse", loss("a") - loss("b"), above(0.5))
    verdict = claim.judge(worlds(a=a, b=(2.0, 2.1, 2.2)[: len(a)]))
    assert verdict.word == word and verdict.why.startswith(why)


def test_seeds_are_paired():
    """What two arms with one seed share drops out of their difference."""
    shared = np.array([1.0, 5.0, 9.0])
    claim = Claim("a is worse", "", loss("a") - loss("b"), above(0.5))
    assert claim.judge(worlds(a=shared + 1, b=shared)).word == "holds"
    assert claim.judge(worlds(a=shared + 1, b=shared[::-1])).word == "untested"


def test_a_claim_says_nothing_where_its_need_is_not_met_or_the_run_is_small():
    need = Need("b is better than chance", loss("b"), below(1.0))
    claim = Claim("as good", "parity", loss("a") - loss("b"), below(0.1), (need,))
    learned, at_chance = worlds(a=[0.5] * 3, b=[0.5] * 3), worlds(a=[1.5] * 3, b=[1.5] * 3)
    assert claim.judge(learned).word == "holds"
    assert claim.judge(at_chance).why == (
        "not seen here: b is better than chance (1.5 to 1.5, needed below 1)"
    )
    for effort in ("quick", "smoke"):
        assert claim.judge(learned, effort).word == "untested"


def test_what_is_counted_needs_one_seed():
    claim = Claim("bytes", "equal", loss("a") / loss("b"), between(0.9, 1.1), counted=True)
    assert claim.judge(worlds(a=[1.0], b=[1.0])).word == "holds"
    assert claim.judge(worlds(a=[1.0, 2.0], b=[1.0, 1.0])).word == "untested"


def test_criteria_print_themselves():
    assert [str(x) for x in (below(0.5), above(-2), between(1, 3))] == [
        "below 0.5", "above -2", "1 to 3",
    ]  # fmt: skip


def test_names_that_are_not_there_are_refused_with_a_hint():
    names = {"full": ["nats", "accuracy"]}
    for quantity, message in [
        (of("ful", "nats"), "claim 'c': arm: got 'ful', did you mean 'full'. expected one of full"),
        (of("full", "acuracy"), r"measure of \[full\]: got 'acuracy', did you mean 'accuracy'"),
    ]:
        with pytest.raises(lab.UserError, match=message):
            claims.check_names([Claim("c", "", quantity, above(0))], names)
    need = Need("n", of("dual", "nats"), above(0))
    with pytest.raises(lab.UserError, match="arm: got 'dual'"):
        claims.check_names([Claim("c", "", of("full", "nats"), above(0), (need,))], names)
