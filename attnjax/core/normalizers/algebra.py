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
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.closures import by_value
from attnjax.core.numerics import divide
from attnjax.core.pairwise.operands import Shape, lay_out
from attnjax.core.values import Value
from attnjax.typing import Array

Rows = tuple[Array, ...]
Params = tuple[Any, ...]  # arrays; NumPy's until the dtype of a call is known
Peak = Callable[[Array], Array]
Rescale = Callable[[Array, Array], Array]  # (old reference, new reference) -> factor
Weigh = Callable[[Array, Array, Rows, Params], Array]  # (s, m, stats, params) -> term


def lowest(dtype: jnp.dtype) -> float:
    """The reference of a row without keys: finite, so that differences of references are."""
    return float(jnp.finfo(dtype).min) / 4


def exponential_rescale(old: Array, new: Array) -> Array:
    """exp(old - new): what exponentials are multiplied by when their reference moves."""
    return jnp.exp(old - new)


@dataclass(frozen=True)
class Stage:
    """Statistics of each row that the terms after it may use.

    terms    (s, m, stats, params) -> elementwise addends, summed over the allowed keys
    finish   (m, sums, stats, params) -> the new stats, rows
    repeat   how often; every round sees the stats of the one before
    peak, rescale as in Normalizer

    Gradients flow through the last round of the last stage only: earlier ones just bring the
    iteration close (one Newton step at the solution differentiates it exactly).  Second ones flow
    through the last two, as the first ones of the last round depend on where it starts.
    """

    terms: Callable[[Array, Array, Rows, Params], Rows]
    finish: Callable[[Array, Rows, Rows, Params], Rows]
    peak: Peak | None = None
    rescale: Rescale = exponential_rescale
    repeat: int = 1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=[
        "name",
        "numerator",
        "denominator",
        "peak",
        "rescale",
        "floor",
        "extra",
        "stages",
        "vanishes",
    ],
)
@dataclass(frozen=True)
class Normalizer(Value):
    """A map from rows of scores to rows of weights; see the module's first lines.

    floor    (params) -> a value the reference never goes below (rows), or None
    extra    (m, params) -> what is added to the denominator (rows), or None
    vanishes  whether all terms of a score of -inf are zero, with zero derivative; if not, such
              scores are masked
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
    vanishes: bool = False

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
        return replace(_by_value(self), params=tuple(params))


def _by_value(record: Any) -> Any:
    """A Normalizer or a Stage whose functions equal their like; see `closures.by_value`."""
    functions = {f.name: getattr(record, f.name) for f in fields(record)}
    functions = {name: by_value(x) for name, x in functions.items() if callable(x)}
    if isinstance(record, Normalizer):
        functions["stages"] = tuple(map(_by_value, record.stages))
    return replace(record, **functions)


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
    rescale_a, rescale_b = rescale(a.m, m), rescale(b.m, m)
    join = lambda x, y: x * rescale_a + y * rescale_b
    return State(m, *jax.tree.map(join, a[1:], b[1:]))


def finish(n: "Normalizer", state: State) -> Array:
    """The weighted sum of values that a state of all keys stands for, (B,N,t,D)."""
    if n.denominator is None:
        return state.values
    (denominator,) = state.sums
    if n.extra is not None:
        denominator = denominator + n.extra(reference(state.m), n.params)
    return divide(state.values, denominator)


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
    low = lowest(m.dtype)  # of a row without keys
    top = jnp.max(top, axis=-1, keepdims=True, initial=low)
    return jnp.maximum(m, lax.stop_gradient(top))


def hide_infinite(n: "Normalizer", s: Array, allowed: Array | None) -> Array | None:
    """What is allowed less scores of -inf, the same as masked under every normalizer."""
    if n.vanishes:
        return allowed
    finite = s != -jnp.inf  # true of NaN, which is to be seen
    return finite if allowed is None else allowed & finite


def zero_masked(allowed: Array | None, *terms: Array) -> Rows:
    """The terms where allowed, zero elsewhere."""
    return terms if allowed is None else tuple(jnp.where(allowed, t, 0.0) for t in terms)


def fill_masked(allowed: Array | None, s: Array, m: Array) -> Array:
    """Scores with forbidden ones set to the reference, where no function here overflows.

    Forbidden terms are zeroed afterwards by `zero_masked`; so 0 * inf stays out of gradients.
    """
    return s if allowed is None else jnp.where(allowed, s, m)


def weights(normalizer: Normalizer, s: Array, allowed: Array | None) -> Array:
    """The dense form, and the definition: a matrix of scores -> the matrix of weights."""
    w, m, sums = unnormalized(normalizer, s, allowed)
    return finish(normalizer, State(m, sums, w))


def unnormalized(n: Normalizer, s: Array, allowed: Array | None) -> tuple[Array, Array, Rows]:
    """The weights before the last division, the reference, and the sum to divide by, if any."""
    dtype, allowed = s.dtype, hide_infinite(n, s, allowed)
    rows = jnp.full((*s.shape[:-1], 1), lowest(dtype), dtype)
    total = lambda t: jnp.sum(t, axis=-1, keepdims=True)
    stats: Rows = ()
    rounds = [stage for stage in n.stages for _ in range(stage.repeat)]
    for i, stage in enumerate(rounds):
        m = reference(new_reference(rows, s, allowed, stage.peak))
        terms = zero_masked(allowed, *stage.terms(fill_masked(allowed, s, m), m, stats, n.params))
        stats = stage.finish(m, tuple(total(t) for t in terms), stats, n.params)
        if stage is not rounds[-1] or i + 2 < len(rounds):
            stats = lax.stop_gradient(stats)
    start = rows if n.floor is None else jnp.maximum(rows, lax.stop_gradient(n.floor(n.params)))
    top = new_reference(start, s, allowed, n.peak)
    m = reference(top)
    hidden = fill_masked(allowed, s, m)
    (w,) = zero_masked(allowed, n.numerator(hidden, m, stats, n.params))
    if n.denominator is None:
        return w, top, ()
    return w, top, (total(*zero_masked(allowed, n.denominator(hidden, m, stats, n.params))),)
