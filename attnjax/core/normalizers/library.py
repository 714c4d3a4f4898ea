"""The normalizers: softmax and its relatives, in one pass, two, or more."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.normalizers.algebra import Normalizer, Params, Rows, Stage
from attnjax.core.numerics import divide
from attnjax.typing import Array, PerHead


def _number(x: float | Array) -> Any:
    """A parameter; a Python number keeps float64 precision until the call's dtype is known."""
    return np.asarray(x, np.float64) if isinstance(x, (int, float)) else x  # type: ignore[return-value]


# ------------------------------------------------------------------------------------ one-pass


def _identity(s: Array) -> Array:
    return s


def _exp(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.exp(s - m)


softmax = Normalizer("softmax", _exp, _exp, peak=_identity, vanishes=True)
"""exp(s_j) / sum exp(s)."""


def _sink_floor(params: Params) -> Array:
    return params[0]


def _sink_extra(m: Array, params: Params) -> Array:
    return jnp.exp(params[0] - m)


def softmax_sink(logits: PerHead | np.ndarray) -> Normalizer:
    """exp(s_j) / (exp(logit_n) + sum exp(s)): a learned key per head whose value is zero.

    Xiao et al. 2023, arXiv:2309.17453; as in gpt-oss, OpenAI 2025.
    """
    return replace(
        softmax, name="softmax_sink", floor=_sink_floor, extra=_sink_extra, params=(logits,)
    )


# A number, not an array: none is made while modules are imported.
softmax_one = replace(
    softmax, name="softmax_one", floor=_sink_floor, extra=_sink_extra, params=(np.zeros(()),)
)  # type: ignore[arg-type]
"""exp(s_j) / (1 + sum exp(s)): "off by one".  Miller 2023; a sink of logit zero."""


def _sigmoid(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jax.nn.sigmoid(s + params[0])


def sigmoid(bias: float | Array = 0.0) -> Normalizer:
    """sigmoid(s_j + bias), not normalized; bias is () or (N,), the paper's is -log S.

    Ramapuram et al. 2024, arXiv:2409.04431.
    """
    return Normalizer("sigmoid", _sigmoid, params=(_number(bias),), vanishes=True)


@dataclass(frozen=True)
class _ReluPower:
    power: int

    def __call__(self, s: Array, m: Array, stats: Rows, params: Params) -> Array:
        return jax.nn.relu(s) ** self.power


def relu(power: int = 1) -> Normalizer:
    """relu(s_j)^power, not normalized.  Zhang et al. 2021, arXiv:2104.07012 (power 1)."""
    if not isinstance(power, int) or power < 1:
        raise ValueError(f"relu: power is {power!r}, expected an integer of at least 1")
    return Normalizer(f"relu({power})", _ReluPower(power), vanishes=True)


def _score(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return s


identity = Normalizer("identity", _score)
"""s_j itself, not normalized: linear attention, or weights that a mod has made."""


def _plain_exp(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.exp(s)


exp = Normalizer("exp", _plain_exp, vanishes=True)
"""exp(s_j), not normalized.

No reference guards it, as there is no sum to divide by: scores above 88 (709 in float64) give
infinity, in float16 and bfloat16 calls, too, since scores are float32.  Sums of several overflow a
little earlier; results are rounded to q's dtype, and float16 ends at 65504, a score of 11.
"""


def _laplace(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return 0.5 * lax.erfc((math.sqrt(0.5) - s) * math.sqrt(2 * math.pi))


laplace = Normalizer("laplace", _laplace, vanishes=True)
"""(1 + erf((s_j - mu) / (sigma sqrt 2))) / 2 with mu = sqrt(1/2), sigma = sqrt(1 / (4 pi)).

Near relu(s)^2 around s = mu, in (0, 1) elsewhere; not normalized.  Ma et al. 2022, Mega,
arXiv:2209.10655.
"""


def _softpick_peak(s: Array) -> Array:
    return jnp.maximum(s, 0.0)


def _softpick_term(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jax.nn.relu(jnp.exp(s - m) - jnp.exp(-m))


def _softpick_mass(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.abs(jnp.exp(s - m) - jnp.exp(-m))


def _softpick_extra(m: Array, params: Params) -> Array:
    return params[0] * jnp.exp(-m)


def softpick(eps: float = 1e-6) -> Normalizer:
    """relu(exp(s_j) - 1) / (sum |exp(s) - 1| + eps).  Zuhri et al. 2025, arXiv:2504.20966."""
    return Normalizer(
        "softpick",
        _softpick_term,
        _softpick_mass,
        peak=_softpick_peak,
        extra=_softpick_extra,
        params=(_number(eps),),
    )


def _size(s: Array) -> Array:
    return jnp.abs(s)


def _signed(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.sign(s) * jnp.exp(jnp.abs(s) - m)


def _unsigned(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.exp(jnp.abs(s) - m)


signed = Normalizer("signed", _signed, _unsigned, peak=_size)
"""sign(s_j) exp|s_j| / sum exp|s|: weights in [-1, 1].  Lv et al. 2024, arXiv:2411.07176."""


@dataclass(frozen=True)
class _Series:
    """sum of s^k / k! up to an order, over M^order, M = max(m, 1): large scores do not overflow."""

    order: int

    def __call__(self, s: Array, m: Array, stats: Rows, params: Params) -> Array:
        first, *rest = (1.0 / math.factorial(k) for k in range(self.order, -1, -1))
        by = 1.0 / jnp.maximum(m, 1.0)
        x, p, power = s * by, jnp.full_like(s, first), by
        for c in rest:
            p = p * x + c * power
            power = power * by
        return p


@dataclass(frozen=True)
class _SeriesRescale:
    order: int

    def __call__(self, old: Array, new: Array) -> Array:
        return (jnp.maximum(old, 1.0) / jnp.maximum(new, 1.0)) ** self.order


def taylor(order: int = 2) -> Normalizer:
    """p(s_j) / sum p(s), p(x) = sum_{k <= order} x^k / k!; order even, so that p > 0.

    Nauen et al. 2024, arXiv:2403.02920.
    """
    if not isinstance(order, int) or order < 2 or order % 2:
        raise ValueError(f"taylor: order is {order!r}, expected an even integer of at least 2")
    series = _Series(order)
    return Normalizer(f"taylor({order})", series, series, peak=_size, rescale=_SeriesRescale(order))


def _near_top(s: Array, m: Array) -> Array:
    """Whether s is the maximum m up to rounding: passes may round the same score differently."""
    slack = 64 * jnp.finfo(s.dtype).eps * jnp.maximum(jnp.abs(m), 1.0)
    near = jnp.where(s >= m - slack, 1.0, 0.0).astype(s.dtype)
    return near + 0.0 * lax.stop_gradient(s - m)  # NaN stays NaN, which no comparison keeps


def _hard(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return _near_top(s, m)


hard = Normalizer("hard", _hard, _hard, peak=_identity, rescale=_near_top)
"""One for the largest score, zero for the others; scores within rounding of it share the weight.

Gradients reach v alone.
"""


# --------------------------------------------------------------------------- two and more passes


def _softplus(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jax.nn.softplus(s)


def _softplus_and_count(s: Array, m: Array, stats: Rows, params: Params) -> Rows:
    return jax.nn.softplus(s), jnp.ones_like(s)


def _level(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
    """The factor n / sum softplus that brings a uniform row to the level 1."""
    return (divide(sums[1], sums[0]),)


@dataclass(frozen=True)
class _Sharpened:
    """relu(n A - offset)^power of the softplus weights A."""

    power: int

    def __call__(self, s: Array, m: Array, stats: Rows, params: Params) -> Array:
        return jax.nn.relu(stats[0] * jax.nn.softplus(s) - params[0]) ** self.power


def softplus(power: int = 1, offset: float | Array = 0.0) -> Normalizer:
    """Length-scaled softplus attention with re-weighting (LSSAR).

        A_j = softplus(s_j) / sum softplus(s),   w_j = relu(n A_j - offset)^power / sum of these

    n counts the allowed keys.  power 1 with offset 0 is A itself, and one-pass.  A row in which
    nothing exceeds the offset gives zeros.  Gao et al. 2025, arXiv:2501.13428.
    """
    if not isinstance(power, int) or power < 1:
        raise ValueError(f"softplus: power is {power!r}, expected an integer of at least 1")
    if power == 1 and isinstance(offset, (int, float)) and offset == 0:
        return Normalizer("softplus", _softplus, _softplus)
    sharpen, stage = _Sharpened(power), Stage(_softplus_and_count, _level)
    name, params = f"softplus(power={power})", (_number(offset),)
    return Normalizer(name, sharpen, sharpen, stages=(stage,), params=params)


def _exp_term(s: Array, m: Array, stats: Rows, params: Params) -> Rows:
    return (jnp.exp(s - m),)


def _log_sum_exp(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
    """Its two terms, m and the logarithm: large scores swallow the second one."""
    empty = sums[0] == 0.0
    return jnp.where(empty, 0.0, m), jnp.log(jnp.where(empty, 1.0, sums[0]))


def _clipped(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    low, high = params
    return jnp.clip((high - low) * jnp.exp(s - stats[0] - stats[1]) + low, 0.0, 1.0)


def clipped_softmax(low: float | Array, high: float | Array = 1.0) -> Normalizer:
    """clip((high - low) softmax(s)_j + low, 0, 1), low <= 0, high >= 1: exact zeros and ones.

    Not normalized again; no gradient where clipped.  Bondarenko et al. 2023, arXiv:2306.12929.
    """
    for name, x, good in (("low", low, "at most 0"), ("high", high, "at least 1")):
        if isinstance(x, (int, float)) and (x > 0 if name == "low" else x < 1):
            raise ValueError(f"clipped_softmax: {name} is {x}, expected {good}")
    stage = Stage(_exp_term, _log_sum_exp, peak=_identity)
    params = (_number(low), _number(high))
    return Normalizer("clipped_softmax", _clipped, stages=(stage,), params=params, vanishes=True)


# entmax: w_j = relu((alpha-1) s_j - tau)^(1/(alpha-1)) with tau such that they sum to one.  The sum
# is convex and decreasing in tau for 1 < alpha <= 2, so Newton's method from the left, where it
# starts, goes up monotonically and cannot overshoot.
_NEWTON = 15


@dataclass(frozen=True)
class _OfAlpha:
    alpha: float | None  # None: the parameter, which is learned

    def power(self, params: Params) -> tuple[Any, Any]:
        """alpha - 1, and one over it."""
        less = (params[0] if self.alpha is None else self.alpha) - 1.0
        return less, 1.0 / less

    def weight(self, s: Array, tau: Array, params: Params) -> Array:
        less, power = self.power(params)
        x = less * s - tau
        return jnp.where(x > 0, self.raised(x, power), 0.0 * x)  # NaN stays NaN

    def slope(self, s: Array, tau: Array, params: Params) -> Array:
        less, power = self.power(params)
        x = less * s - tau
        return jnp.where(x > 0, power * self.raised(x, power - 1.0), 0.0)

    def raised(self, x: Array, power: Any) -> Array:
        """x > 0 to the power."""
        x = jnp.where(x > 0, x, 1.0)
        return x**power if self.alpha is not None else jnp.exp(power * jnp.log(x))


# Statistics are tau less (alpha-1) m, and m, the largest score: s - m is exact near it, which
# (alpha-1) s - tau is not for scores of 1e8.


class _EntmaxWeight(_OfAlpha):
    def __call__(self, s: Array, m: Array, stats: Rows, params: Params) -> Array:
        return self.weight(s - stats[1], stats[0], params)


class _EntmaxTerms(_OfAlpha):
    def __call__(self, s: Array, m: Array, stats: Rows, params: Params) -> Rows:
        s = s - stats[1]
        return self.weight(s, stats[0], params), self.slope(s, stats[0], params)


def _entmax_start(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
    return jnp.full_like(m, -1.0), m


def _newton_step(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
    excess, steepness = jnp.where(sums[0] == 0, 0.0, sums[0] - 1.0), sums[1]
    # At the solution there is no excess: the steepness has no first derivative, but second ones.
    rest = lax.stop_gradient(excess)
    step = divide(excess - rest, steepness) + divide(rest, lax.stop_gradient(steepness))
    return stats[0] + step, stats[1]


def _nothing(s: Array, m: Array, stats: Rows, params: Params) -> Rows:
    return ()


def entmax(alpha: float | PerHead | np.ndarray = 1.5) -> Normalizer:
    """relu((alpha-1) s_j - tau)^(1/(alpha-1)), tau such that a row sums to one; 1 < alpha <= 2.

    Exact zeros; alpha -> 1 is softmax, alpha = 2 sparsemax.  tau by a fixed number of Newton steps,
    each one pass over the scores.  Peters et al. 2019, arXiv:1905.05702.  An array alpha (N,) is
    that of each head, with a gradient: Correia et al. 2019, arXiv:1909.00015, who learn a_n in
    alpha = clip(1 + sigmoid(a_n), 1.01, 2).
    """
    fixed = isinstance(alpha, (int, float))
    if fixed and not 1 < alpha <= 2:
        raise ValueError(f"entmax: alpha is {alpha!r}, expected a number with 1 < alpha <= 2")
    first = Stage(_nothing, _entmax_start, peak=_identity)
    of_alpha = float(alpha) if fixed else None
    steps = Stage(_EntmaxTerms(of_alpha), _newton_step, repeat=_NEWTON)
    name = f"entmax({alpha})" if fixed else "entmax(of heads)"
    params = () if fixed else (alpha,)
    weight = _EntmaxWeight(of_alpha)
    return Normalizer(name, weight, stages=(first, steps), params=params)


sparsemax = replace(entmax(2.0), name="sparsemax")
"""The projection of a row onto the simplex.  Martins & Astudillo 2016, arXiv:1602.02068."""
