"""A paper's claim as data: what is compared, where it must lie, what must be seen first.

    accuracy = lambda arm: of(f"probe: {arm}", "accuracy")
    Claim(
        "dual learns where full cannot", "learns", accuracy("dual") - accuracy("full"), above(0.3),
        needs=(Need("causal learns the probe", accuracy("causal"), above(0.5)),),
    )

A claim is judged on the 90 % interval of its quantity over paired seeds (or rounds of a timing):
what two arms with the same seed share drops out of their difference.

    holds      the whole interval lies where the claim says
    fails      the whole interval lies elsewhere
    untested   fewer than three seeds, a smaller run than the full one, an interval on both sides,
               or a need that is not met here; the verdict says which

A claim compares.  Parity needs something that is worse, or a world without any effect would do.
"""

import difflib
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy import stats

from attnjax.lab.errors import UserError

Metrics = dict[str, dict[str, float]]  # of one seed: arm -> measure -> value
Names = Mapping[str, Sequence[str]]  # arm -> its measures
Word = Literal["holds", "fails", "untested"]

SEEDS = 3  # that a verdict needs
LEVEL = 0.9  # of the interval

_SIGNS = {"-": operator.sub, "/": operator.truediv}


@dataclass(frozen=True)
class Quantity:
    """A number of one seed's metrics: `of(arm, measure)`, and differences and quotients of them."""

    text: str
    reads: tuple[tuple[str, str], ...]
    value: Callable[[Metrics], float]

    def __call__(self, metrics: Metrics) -> float:
        return self.value(metrics)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return self._with("-", other)

    def __truediv__(self, other: "Quantity") -> "Quantity":
        return self._with("/", other)

    def __str__(self) -> str:
        return self.text

    def _with(self, sign: str, other: "Quantity") -> "Quantity":
        mine, theirs, apply = self.value, other.value, _SIGNS[sign]

        def value(metrics: Metrics) -> float:
            try:
                return apply(mine(metrics), theirs(metrics))
            except ZeroDivisionError:
                return math.nan

        right = f"({other})" if " " in other.text and len(other.reads) > 1 else str(other)
        return Quantity(f"{self} {sign} {right}", self.reads + other.reads, value)


def of(arm: str, measure: str) -> Quantity:
    """The measure of an arm."""
    return Quantity(f"{measure} of [{arm}]", ((arm, measure),), lambda m: m[arm][measure])


def least(*quantities: Quantity) -> Quantity:
    """The smallest of several quantities."""

    def value(metrics: Metrics) -> float:
        found = [each(metrics) for each in quantities]
        return math.nan if any(map(math.isnan, found)) else min(found)

    reads = tuple(read for each in quantities for read in each.reads)
    return Quantity(f"smallest of ({', '.join(map(str, quantities))})", reads, value)


@dataclass(frozen=True)
class Between:
    """Where a number must lie; an infinite end is not printed."""

    low: float
    high: float

    def holds(self, interval: tuple[float, float]) -> bool:
        """Whether all of the interval lies inside; nan lies nowhere."""
        return self.low < interval[0] and interval[1] < self.high

    def fails(self, interval: tuple[float, float]) -> bool:
        """Whether all of the interval lies outside."""
        return interval[1] <= self.low or self.high <= interval[0]

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"below {self.high:g}"
        if math.isinf(self.high):
            return f"above {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def below(high: float) -> Between:
    return Between(-math.inf, high)


def above(low: float) -> Between:
    return Between(low, math.inf)


def between(low: float, high: float) -> Between:
    return Between(low, high)


@dataclass(frozen=True)
class Need:
    """What has to be seen before a claim says anything: a baseline that shows the problem, or has
    learned the task."""

    says: str
    quantity: Quantity
    lies: Between


@dataclass(frozen=True)
class Claim:
    """What is claimed, the paper's words or number, the quantity, and where it must lie.

    `counted` marks a number that does not vary, such as bytes in a compiled program: one seed
    tells it.
    """

    says: str
    paper: str
    quantity: Quantity
    lies: Between
    needs: tuple[Need, ...] = ()
    counted: bool = False

    def judge(self, seeds: Sequence[Metrics], effort: str = "full") -> "Verdict":
        """The verdict on the metrics of each seed; only a full run can hold or fail."""
        values = tuple(float(self.quantity(metrics)) for metrics in seeds)
        low, high = (min(values), max(values)) if self.counted else interval(values)
        return Verdict(self, values, low, high, *self._word(seeds, (low, high), effort))

    def _word(
        self, seeds: Sequence[Metrics], found: tuple[float, float], effort: str
    ) -> tuple[Word, str]:
        if effort != "full":
            return "untested", f"a {effort} run only shows that it runs"
        if len(seeds) < SEEDS and not self.counted:
            return "untested", f"{len(seeds)} of the {SEEDS} seeds that a verdict needs"
        for need in self.needs:
            seen = interval([need.quantity(metrics) for metrics in seeds])
            if not need.lies.holds(seen):
                told = f"{_number(seen[0])} to {_number(seen[1])}, needed {need.lies}"
                return "untested", f"not seen here: {need.says} ({told})"
        if self.lies.holds(found):
            return "holds", ""
        if self.lies.fails(found):
            return "fails", ""
        return "untested", f"the interval is on both sides of {self.lies}"


@dataclass(frozen=True)
class Verdict:
    """A claim with one value a seed, the 90 % interval of their mean, the word, and why."""

    claim: Claim
    values: tuple[float, ...]
    low: float
    high: float
    word: Word
    why: str

    @property
    def measured(self) -> str:
        """'0.62 (0.55 to 0.7)', or the mean alone where there is no interval."""
        mean = _number(statistics.fmean(self.values))
        if self.claim.counted or not math.isfinite(self.low + self.high):
            return mean
        return f"{mean} ({_number(self.low)} to {_number(self.high)})"

    def record(self) -> dict[str, Any]:
        claim = self.claim
        return {
            "verdict": self.word, "why": self.why, "claim": claim.says, "paper": claim.paper,
            "quantity": str(claim.quantity), "wanted": str(claim.lies),
            "measured": self.measured, "values": self.values, "low": self.low, "high": self.high,
        }  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the mean lies, 90 %, by Student's t; a single value says nothing of its spread."""
    count = len(values)
    if count < 2 or not all(map(math.isfinite, values)):
        return (-math.inf, math.inf) if all(map(math.isfinite, values)) else (math.nan, math.nan)
    mean, sd = mean_and_sd(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * sd / math.sqrt(count)
    return mean - half, mean + half


def check_names(claims: Sequence[Claim], names: Names) -> None:
    """Raises UserError where a claim names an arm or a measure that is not there."""
    for claim in claims:
        for each in (claim.quantity, *(need.quantity for need in claim.needs)):
            for arm, measure in each.reads:
                _known(claim, "arm", arm, names)
                _known(claim, f"measure of [{arm}]", measure, names[arm])


def _known(claim: Claim, kind: str, name: str, there: Any) -> None:
    if name not in there:
        near: list[str] = difflib.get_close_matches(name, list(there), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"claim {claim.says!r}: {kind}: got {name!r}, {hint}expected one of {', '.join(there)}"
        )


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation with n - 1 (0 for a single value)."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(spread / (len(values) - 1)) if len(values) > 1 else 0.0


def plus_minus(mean: float, sd: float, count: int) -> str:
    """'1.23 +- 0.04', or the mean alone when there is one value."""
    return _number(mean) if count == 1 else f"{_number(mean)} +- {sd:.1g}"


def _number(value: float) -> str:
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
