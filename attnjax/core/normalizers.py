"""Normalizers: how a row of scores becomes a row of weights, as sums that merge.

One algebra serves all executions.  A row's weights times its values are

    out = sum_j f(s_j; m) v_j / (sum_j g(s_j; m) + extra(m))

with f the numerator, g the denominator (none: no division) and m a reference, the largest
peak(s_j) seen so far, that only guards against overflow: f and g scale by rescale(m, m') when the
reference moves from m to m'.  So (m, sum g, sum f v) of two sets of keys merge into that of their
union - tiles, devices or splits of a cache - and every normalizer written this way is one-pass.

A normalizer that needs a number of the whole row before it can weigh a score (a clipped softmax
needs the softmax's denominator) asks for it with a `Stage`: the same kind of sums, without values.
One stage makes it two-pass, entmax iterates one a fixed number of times.

Functions get scores (B,N,t,s) and rows (B,N,t,1); params are (1,N,1,1) or (1,1,1,1).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.tiles import Shape, lay_out
from attnjax.typing import Array, PerHead

Rows = tuple[Array, ...]
Params = tuple[Array, ...]
Peak = Callable[[Array], Array]
Rescale = Callable[[Array, Array], Array]  # (old reference, new reference) -> factor
Weigh = Callable[[Array, Array, Rows, Params], Array]  # (s, m, stats, params) -> term


def lowest(dtype: jnp.dtype) -> float:
    """The reference of a row without keys: finite, so that differences of references are."""
    return float(jnp.finfo(dtype).min) / 4


def exponential_rescale(old: Array, new: Array) -> Array:
    return jnp.exp(old - new)


@dataclass(frozen=True)
class Stage:
    """Statistics of each row that the terms after it may use.

    terms    (s, m, stats, params) -> elementwise addends, summed over the allowed keys
    finish   (m, sums, stats, params) -> the new stats, rows
    repeat   how often; every round sees the stats of the one before
    peak, rescale as in Normalizer

    Gradients flow through the last round of the last stage only: earlier ones just bring the
    iteration close (one Newton step at the solution differentiates it exactly).
    """

    terms: Callable[[Array, Array, Rows, Params], Rows]
    finish: Callable[[Array, Rows, Rows, Params], Rows]
    peak: Peak | None = None
    rescale: Rescale = exponential_rescale
    repeat: int = 1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["name", "numerator", "denominator", "peak", "rescale", "floor", "extra", "stages"],
)
@dataclass(frozen=True)
class Normalizer:
    """A map from rows of scores to rows of weights; see the module's first lines.

    floor    (params) -> a value the reference never goes below (rows), or None
    extra    (m, params) -> what is added to the denominator (rows), or None
    """

    name: str
    numerator: Weigh
    denominator: Weigh | None = None
    peak: Peak | None = None
    rescale: Rescale = exponential_rescale
    floor: Callable[[Params], Array] | None = None
    extra: Callable[[Array, Params], Array] | None = None
    stages: tuple[Stage, ...] = ()
    params: Params = ()

    @property
    def rounds(self) -> int:
        """How often the scores are computed in a forward pass."""
        return 1 + sum(stage.repeat for stage in self.stages)

    @property
    def passes(self) -> str:
        return {1: "one-pass", 2: "two-pass"}.get(self.rounds, f"{self.rounds}-pass")

    def __repr__(self) -> str:
        return f"{self.name} ({self.passes})"

    def laid_out(self, z: Shape, dtype: jnp.dtype) -> "Normalizer":
        """The same normalizer with its per-head parameters laid out against scores."""
        params = (lay_out("head", jnp.asarray(p).astype(dtype), z) for p in self.params)
        return replace(self, params=tuple(params))


# --------------------------------------------------------------------- sums over keys that merge


class State(NamedTuple):
    """What a set of keys leaves behind, per row: reference, sums of terms, weighted values.

    m (B,N,t,1); sums, each (B,N,t,1); values (B,N,t,D), D = 0 where none are wanted.
    """

    m: Array
    sums: Rows
    values: Array


def reference(m: Array) -> Array:
    """The reference to compute with: 0 for rows that have seen no key."""
    return jnp.where(m <= lowest(m.dtype), 0.0, m)


def merge(a: State, b: State, rescale: Rescale) -> State:
    """The state of the union of two disjoint sets of keys; associative and commutative."""
    m = jnp.maximum(a.m, b.m)
    fade_a, fade_b = rescale(a.m, m), rescale(b.m, m)
    join = lambda x, y: x * fade_a + y * fade_b
    return State(m, *jax.tree.map(join, a[1:], b[1:]))


def finish(n: "Normalizer", state: State) -> Array:
    """The weighted sum of values that a state of all keys stands for, (B,N,t,D)."""
    if n.denominator is None:
        return state.values
    (mass,) = state.sums
    if n.extra is not None:
        mass = mass + n.extra(reference(state.m), n.params)
    return divide(state.values, mass)


def log_sum(state: State) -> Array:
    """log sum exp(s) of a softmax state, (B,N,t,1); the lowest number for rows without keys."""
    (total,) = state.sums
    some = total > 0
    return jnp.where(some, state.m + jnp.log(jnp.where(some, total, 1.0)), lowest(total.dtype))


def new_reference(m: Array, s: Array, allowed: Array | None, peak: Peak | None) -> Array:
    """The reference after the scores s, without gradient: results do not depend on it."""
    if peak is None:
        return m
    top = peak(s)
    if allowed is not None:
        top = jnp.where(allowed, top, lowest(m.dtype))
    return jnp.maximum(m, lax.stop_gradient(jnp.max(top, axis=-1, keepdims=True)))


def keep(allowed: Array | None, *terms: Array) -> Rows:
    """The terms where allowed, zero elsewhere."""
    return terms if allowed is None else tuple(jnp.where(allowed, t, 0.0) for t in terms)


def hide(allowed: Array | None, s: Array, m: Array) -> Array:
    """Scores with forbidden ones set to the reference, where no function here overflows.

    Forbidden terms are zeroed afterwards by `keep`; this keeps 0 * inf out of their gradients.
    """
    return s if allowed is None else jnp.where(allowed, s, m)


def divide(values: Array, total: Array) -> Array:
    """values / total; zero where total is zero, in value and in gradient."""
    safe = jnp.where(total == 0.0, 1.0, total)
    return jnp.where(total == 0.0, 0.0, values / safe)


def weights(normalizer: Normalizer, s: Array, allowed: Array | None) -> Array:
    """The dense form, and the definition: a matrix of scores -> the matrix of weights."""
    w, m, sums = unnormalized(normalizer, s, allowed)
    return finish(normalizer, State(m, sums, w))


def unnormalized(n: Normalizer, s: Array, allowed: Array | None) -> tuple[Array, Array, Rows]:
    """The weights before the last division, the reference, and the sum to divide by, if any."""
    dtype = s.dtype
    rows = jnp.full((*s.shape[:-1], 1), lowest(dtype), dtype)
    total = lambda t: jnp.sum(t, axis=-1, keepdims=True)
    stats: Rows = ()
    rounds = [stage for stage in n.stages for _ in range(stage.repeat)]
    for i, stage in enumerate(rounds):
        m = reference(new_reference(rows, s, allowed, stage.peak))
        terms = keep(allowed, *stage.terms(hide(allowed, s, m), m, stats, n.params))
        stats = stage.finish(m, tuple(total(t) for t in terms), stats, n.params)
        if i + 1 < len(rounds):
            stats = lax.stop_gradient(stats)
    start = rows if n.floor is None else jnp.maximum(rows, lax.stop_gradient(n.floor(n.params)))
    top = new_reference(start, s, allowed, n.peak)
    m = reference(top)
    hidden = hide(allowed, s, m)
    (w,) = keep(allowed, n.numerator(hidden, m, stats, n.params))
    if n.denominator is None:
        return w, top, ()
    return w, top, (total(*keep(allowed, n.denominator(hidden, m, stats, n.params))),)


def _number(x: float | Array) -> Array:
    """A parameter; a Python number keeps float64 precision until the call's dtype is known."""
    return np.asarray(x, np.float64) if isinstance(x, (int, float)) else x  # type: ignore[return-value]


# ------------------------------------------------------------------------------------ one-pass


def _identity(s: Array) -> Array:
    return s


def _exp(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.exp(s - m)


softmax = Normalizer("softmax", _exp, _exp, peak=_identity)
"""exp(s_j) / sum exp(s)."""


def _sink_floor(params: Params) -> Array:
    return params[0]


def _sink_extra(m: Array, params: Params) -> Array:
    return jnp.exp(params[0] - m)


def softmax_sink(logits: PerHead) -> Normalizer:
    """exp(s_j) / (exp(logit_n) + sum exp(s)): a learned key per head whose value is zero.

    Xiao et al. 2023, arXiv:2309.17453; as in gpt-oss, OpenAI 2025.
    """
    return replace(
        softmax, name="softmax_sink", floor=_sink_floor, extra=_sink_extra, params=(logits,)
    )


softmax_one = replace(softmax_sink(np.zeros(())), name="softmax_one")  # type: ignore[arg-type]
"""exp(s_j) / (1 + sum exp(s)): "off by one".  Miller 2023; a sink of logit zero."""


def _sigmoid(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jax.nn.sigmoid(s + params[0])


def sigmoid(bias: float | Array = 0.0) -> Normalizer:
    """sigmoid(s_j + bias), not normalized; bias is () or (N,), the paper's is -log S.

    Ramapuram et al. 2024, arXiv:2409.04431.
    """
    return Normalizer("sigmoid", _sigmoid, params=(_number(bias),))


@functools.cache
def relu(power: int = 1) -> Normalizer:
    """relu(s_j)^power, not normalized.  Zhang et al. 2021, arXiv:2104.07012 (power 1)."""
    if not isinstance(power, int) or power < 1:
        raise ValueError(f"relu: power is {power!r}, expected an integer of at least 1")
    return Normalizer(f"relu({power})", lambda s, m, stats, params: jax.nn.relu(s) ** power)


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


def _signed(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.sign(s) * jnp.exp(jnp.abs(s) - m)


def _unsigned(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.exp(jnp.abs(s) - m)


signed = Normalizer("signed", _signed, _unsigned, peak=jnp.abs)
"""sign(s_j) exp|s_j| / sum exp|s|: weights in [-1, 1].  Lv et al. 2024, arXiv:2411.07176."""


@functools.cache
def taylor(order: int = 2) -> Normalizer:
    """p(s_j) / sum p(s), p(x) = sum_{k <= order} x^k / k!; order even, so that p > 0.

    Nauen et al. 2024, arXiv:2403.02920.
    """
    if not isinstance(order, int) or order < 2 or order % 2:
        raise ValueError(f"taylor: order is {order!r}, expected an even integer of at least 2")
    coefficients = [1.0 / math.factorial(k) for k in range(order, -1, -1)]

    def series(s: Array, m: Array, stats: Rows, params: Params) -> Array:
        return functools.reduce(
            lambda p, c: p * s + c, coefficients[1:], jnp.full_like(s, coefficients[0])
        )

    return Normalizer(f"taylor({order})", series, series)


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


@functools.cache
def _reweighted(power: int) -> Normalizer:
    def sharpen(s: Array, m: Array, stats: Rows, params: Params) -> Array:
        return jax.nn.relu(stats[0] * jax.nn.softplus(s) - params[0]) ** power

    stage = Stage(_softplus_and_count, _level)
    return Normalizer(f"softplus(power={power})", sharpen, sharpen, stages=(stage,))


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
    return replace(_reweighted(power), params=(_number(offset),))


def _exp_term(s: Array, m: Array, stats: Rows, params: Params) -> Rows:
    return (jnp.exp(s - m),)


def _log_sum_exp(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
    empty = sums[0] == 0.0
    return (jnp.where(empty, 0.0, m + jnp.log(jnp.where(empty, 1.0, sums[0]))),)


def _clipped(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    low, high = params
    return jnp.clip((high - low) * jnp.exp(s - stats[0]) + low, 0.0, 1.0)


def clipped_softmax(low: float | Array, high: float | Array = 1.0) -> Normalizer:
    """clip((high - low) softmax(s)_j + low, 0, 1), low <= 0, high >= 1: exact zeros and ones.

    Not normalized again; no gradient where clipped.  Bondarenko et al. 2023, arXiv:2306.12929.
    """
    for name, x, good in (("low", low, "at most 0"), ("high", high, "at least 1")):
        if isinstance(x, (int, float)) and (x > 0 if name == "low" else x < 1):
            raise ValueError(f"clipped_softmax: {name} is {x}, expected {good}")
    stage = Stage(_exp_term, _log_sum_exp, peak=_identity)
    params = (_number(low), _number(high))
    return Normalizer("clipped_softmax", _clipped, stages=(stage,), params=params)


# entmax: w_j = relu((alpha-1) s_j - tau)^(1/(alpha-1)) with tau such that they sum to one.  The sum
# is convex and decreasing in tau for 1 < alpha <= 2, so Newton's method from the left, where it
# starts, goes up monotonically and cannot overshoot.
_NEWTON = 15


@functools.cache
def entmax(alpha: float = 1.5) -> Normalizer:
    """relu((alpha-1) s_j - tau)^(1/(alpha-1)), tau such that a row sums to one; 1 < alpha <= 2.

    Exact zeros; alpha -> 1 is softmax, alpha = 2 sparsemax.  tau by a fixed number of Newton steps,
    each one pass over the scores.  Peters et al. 2019, arXiv:1905.05702.
    """
    if not isinstance(alpha, (int, float)) or not 1 < alpha <= 2:
        raise ValueError(f"entmax: alpha is {alpha!r}, expected a number with 1 < alpha <= 2")
    power = 1.0 / (alpha - 1.0)

    def weigh(s: Array, tau: Array) -> Array:
        x = (alpha - 1.0) * s - tau
        return jnp.where(x > 0, jnp.where(x > 0, x, 1.0) ** power, 0.0 * x)  # NaN stays NaN

    def slope(s: Array, tau: Array) -> Array:
        x = (alpha - 1.0) * s - tau
        return jnp.where(x > 0, power * jnp.where(x > 0, x, 1.0) ** (power - 1.0), 0.0)

    def begin(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
        return ((alpha - 1.0) * m - 1.0,)

    def terms(s: Array, m: Array, stats: Rows, params: Params) -> Rows:
        return weigh(s, stats[0]), slope(s, stats[0])

    def newton(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
        excess, steepness = jnp.where(sums[0] == 0, 0.0, sums[0] - 1.0), lax.stop_gradient(sums[1])
        return (stats[0] + divide(excess, steepness),)

    def numerator(s: Array, m: Array, stats: Rows, params: Params) -> Array:
        return weigh(s, stats[0])

    first = Stage(lambda s, m, stats, params: (), begin, peak=_identity)
    return Normalizer(
        f"entmax({alpha})", numerator, stages=(first, Stage(terms, newton, repeat=_NEWTON))
    )


sparsemax = replace(entmax(2.0), name="sparsemax")
"""The projection of a row onto the simplex.  Martins & Astudillo 2016, arXiv:1602.02068."""
