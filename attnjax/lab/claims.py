"""A paper's claim beside what was measured, and the criterion that decides."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Metrics = dict[str, dict[str, float]]  # of one seed: variant -> measure -> value


class Criterion(Protocol):
    """Decides on a number, and prints itself."""

    def __call__(self, value: float) -> bool: ...


@dataclass(frozen=True)
class Between:
    """low < value < high; an infinite end is not printed, and nan never holds."""

    low: float
    high: float

    def __call__(self, value: float) -> bool:
        return self.low < value < self.high

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"< {self.high:g}"
        if math.isinf(self.high):
            return f"> {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def below(high: float) -> Criterion:
    """value < high."""
    return Between(-math.inf, high)


def above(low: float) -> Criterion:
    """value > low."""
    return Between(low, math.inf)


def between(low: float, high: float) -> Criterion:
    """low < value < high."""
    return Between(low, high)


@dataclass(frozen=True)
class Claim:
    """What is claimed, the paper's words or number, how it is measured here, and when it holds.

    `measure` takes the metrics of one seed; the criterion judges the mean over seeds.
    """

    what: str
    paper: str
    measure: Callable[[Metrics], float]
    criterion: Criterion

    def judge(self, seeds: Sequence[Metrics]) -> "Verdict":
        values = tuple(float(self.measure(metrics)) for metrics in seeds)
        mean, sd = mean_and_sd(values)
        return Verdict(self, values, mean, sd, self.criterion(mean))


@dataclass(frozen=True)
class Verdict:
    """A claim with one value per seed, their mean and standard deviation (0 for one seed)."""

    claim: Claim
    values: tuple[float, ...]
    mean: float
    sd: float
    holds: bool

    def row(self) -> tuple[str, str, str, str, str]:
        """claim | paper | measured | criterion | holds, as text."""
        claim = self.claim
        measured = plus_minus(self.mean, self.sd, len(self.values))
        return (
            claim.what,
            claim.paper,
            measured,
            str(claim.criterion),
            "yes" if self.holds else "no",
        )

    def record(self) -> dict[str, Any]:
        claim = self.claim
        told = {"claim": claim.what, "paper": claim.paper, "criterion": str(claim.criterion)}
        return told | {
            "values": self.values, "mean": self.mean, "sd": self.sd, "holds": self.holds
        }  # fmt: skip


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation with n - 1 (0 for a single value)."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(spread / (len(values) - 1)) if len(values) > 1 else 0.0


def plus_minus(mean: float, sd: float, count: int) -> str:
    """'1.23 +- 0.04', or the mean alone when there is one value."""
    text = f"{mean:.0f}" if 1000 <= abs(mean) < 1e6 else f"{mean:.3g}"
    return text if count == 1 else f"{text} +- {sd:.1g}"
