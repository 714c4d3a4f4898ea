"""Statistics of attention weights without the matrix of weights: over tiles, in O(T + S) memory.

    seen = measure(q, k, mask=masks.causal, of=("entropy", "first_mass", "key_mass"))
    seen["entropy"]                       (B,N,T)

A sum over keys of any function of the weights is attention once more, under a normalizer that
knows the denominator before it weighs: so every mod, mask and normalizer works, every
implementation, and derivatives do.  Each statistic is a forward pass or two; the mass of each key
is a backward pass, the weights of the largest scores one pass each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attnjax.core import mods, normalizers
from attnjax.core.mods import RelativeValues
from attnjax.core.normalizers import Normalizer, Params, Rows, Stage, lowest
from attnjax.core.numerics import divide
from attnjax.core.pairwise.attend import Impl, attend, attend_state
from attnjax.core.sharding import pvary_like, sharding_of
from attnjax.typing import Array, K, Q

OfWeight = Callable[[Array], Array]


def measure(
    q: Q,
    k: K,
    *,
    of: str | tuple[str, ...] = ("entropy", "largest_weight", "first_mass", "distance"),
    first: int = 1,
    top: int = 8,
    impl: Impl = None,
    **terms: Any,
) -> dict[str, Array]:
    """What the weights of `attend(q, k, ..., **terms)` are like, by the names that `of` asks for.

    Rows (B,N,T), in float32 (float64 for float64 inputs):

    mass            sum_j w_ij: 1 under softmax, less with a sink, zero where nothing is allowed
    entropy         - sum_j w_ij log w_ij, in nats, of the weights as they are
    largest_weight  max_j w_ij, of a normalizer under which larger scores weigh no less
    largest_score   max_j s_ij after mods, -inf where nothing is allowed; no gradient
    top_mass        the weights of the `top` largest scores, those that tie with the last included
    first_mass      sum_j w_ij over the `first` keys of the text: attention sinks
    distance        sum_j w_ij |i - j| / sum_j w_ij, in tokens, of positions where there are any
    zeros           the share of the allowed keys whose weight is zero

    and of keys (B,N,S)

    key_mass        sum_i w_ij: what a key is given by all queries

    first   keys from the start of the text; top   scores, at most S
    terms   mods, mask, normalizer, scale, q_positions, k_positions, as `attend` takes them

    Differentiable in q, k and operands but for largest_score and zeros; and, under normalizers of
    several passes, largest_weight, and entropy where they divide at the end as well (softplus with
    a power).  Raises ValueError for an unknown name, for top_mass under a normalizer of several
    passes, and for distance at positions that are not known while tracing.
    """
    names = (of,) if isinstance(of, str) else tuple(of)
    for name in names:
        if name not in STATISTICS:
            known = ", ".join(STATISTICS)
            raise ValueError(f"measure: of has {name!r}, expected names among {known}")
    if not 1 <= first or not 1 <= top:
        raise ValueError(f"measure: first is {first}, top is {top}, expected at least 1")
    call = _Call(q, k, first, min(top, k.shape[1]), impl, terms)
    return {name: STATISTICS[name](call) for name in names}


class _Call(NamedTuple):
    q: Q
    k: K
    first: int
    top: int
    impl: Impl
    terms: dict[str, Any]

    @property
    def normalizer(self) -> Normalizer:
        return self.terms.get("normalizer", normalizers.softmax)

    @property
    def dtype(self) -> Any:
        return jnp.promote_types(jnp.result_type(self.q, self.k), jnp.float32)

    def sums(self, values: Any, **changes: Any) -> Array:
        """sum_j w_ij value_j of one number a key, (B,N,T)."""
        q, k = self.q.astype(self.dtype), self.k.astype(self.dtype)
        out = attend(q, k, values, impl=self.impl, **(self.terms | changes))
        return out[..., 0].swapaxes(1, 2)

    def ones(self) -> Array:
        return jnp.ones((*self.k.shape[:3], 1), self.dtype)

    def scores(self, *more: mods.Mod) -> normalizers.State:
        """The largest scores, and the number of keys that have them, after one more mod."""
        q, k = self.q.astype(self.dtype), self.k.astype(self.dtype)
        changes = {"normalizer": normalizers.hard, "mods": (*self.terms.get("mods", ()), *more)}
        nothing = jnp.zeros((*k.shape[:3], 0), k.dtype)
        return attend_state(q, k, nothing, impl=self.impl, **(self.terms | changes))


# ------------------------------------------------------------------------ functions of weights


@dataclass(frozen=True)
class _Terms:
    """The denominator, if there is one."""

    denominator: Callable[..., Array] | None

    def __call__(self, s: Array, m: Array, stats: Rows, params: Params) -> Rows:
        return () if self.denominator is None else (self.denominator(s, m, stats, params),)


@dataclass(frozen=True)
class _Known:
    """What a row is to know before it weighs: the reference, and the denominator."""

    n: Normalizer

    def __call__(self, m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
        n, top = self.n, m
        if n.floor is not None:
            top = jnp.maximum(m, lax.stop_gradient(n.floor(params)))
        total = jnp.ones_like(m) if not sums else sums[0] * n.rescale(m, top)
        if n.extra is not None:
            total = total + n.extra(top, params)
        return (*stats, top, total)


@dataclass(frozen=True)
class _OfWeight:
    """f(w), w the weight of one pair."""

    numerator: Callable[..., Array]
    known: bool
    f: OfWeight

    def __call__(self, s: Array, m: Array, stats: Rows, params: Params) -> Array:
        if not self.known:
            return self.f(self.numerator(s, m, stats, params))
        *before, top, total = stats
        return self.f(divide(self.numerator(s, top, tuple(before), params), total))


def of_weights(n: Normalizer, f: OfWeight) -> Normalizer:
    """The normalizer whose weights are f(w) of those of n, an elementwise function."""
    known = n.peak is not None or n.denominator is not None
    weigh = _OfWeight(n.numerator, known, f)
    stages = n.stages
    if known:
        parameterless = replace(n, params=())
        stages += (Stage(_Terms(n.denominator), _Known(parameterless), n.peak, n.rescale),)
    return Normalizer(f"of the weights of {n.name}", weigh, stages=stages, params=n.params)


def _surprise(w: Array) -> Array:
    some = w > 0
    return jnp.where(some, -w * jnp.log(jnp.where(some, w, 1.0)), 0.0)


def _is_zero(w: Array) -> Array:
    return jnp.where(w == 0, jnp.ones_like(w), 0.0)


def _one(s: Array, m: Array, stats: Rows, params: Params) -> Array:
    return jnp.ones_like(s)


@dataclass(frozen=True)
class _AtTop:
    """Whether the score is the largest of the row, up to rounding; times its weight."""

    weigh: Callable[..., Array] | None
    place: int

    def __call__(self, s: Array, m: Array, stats: Rows, params: Params) -> Array:
        near = normalizers.hard.numerator(s, stats[self.place], stats, params)
        return near if self.weigh is None else near * self.weigh(s, m, stats, params)


def _remember(m: Array, sums: Rows, stats: Rows, params: Params) -> Rows:
    return (*stats, m)


def _nothing(s: Array, m: Array, stats: Rows, params: Params) -> Rows:
    return ()


def of_top(n: Normalizer) -> Normalizer:
    """The normalizer of one weight: n's mean weight of the keys with the largest score."""
    top = Stage(_nothing, _remember, normalizers.hard.peak)
    one = of_weights(replace(n, stages=(*n.stages, top)), _itself)
    place = -3 if len(one.stages) > len(n.stages) + 1 else -1  # before what `_Known` adds
    weigh, near = _AtTop(one.numerator, place), _AtTop(None, place)
    return replace(one, name=f"of the top of {n.name}", numerator=weigh, denominator=near)


def _itself(w: Array) -> Array:
    return w


def _sum_of(call: _Call, f: OfWeight) -> Array:
    out = call.sums(call.ones(), normalizer=of_weights(call.normalizer, f))
    twice = call.normalizer.stages and call.normalizer.denominator is not None
    return lax.stop_gradient(out) if twice else out  # only a last stage has a derivative


# -------------------------------------------------------------------------------- the statistics


def _mass(call: _Call) -> Array:
    return call.sums(call.ones())


def _entropy(call: _Call) -> Array:
    return _sum_of(call, _surprise)


def _zeros(call: _Call) -> Array:
    zeros = lax.stop_gradient(_sum_of(call, _is_zero))
    count = call.sums(call.ones(), normalizer=Normalizer("count", _one))
    return divide(zeros, count)


def _largest_score(call: _Call) -> Array:
    m = call.scores().m[..., 0]
    return lax.stop_gradient(jnp.where(m <= lowest(m.dtype), -jnp.inf, m))


def _first_mass(call: _Call) -> Array:
    early = (_positions(call) < call.first).astype(call.dtype)
    early = early.reshape(1, *early.shape) if early.ndim == 1 else early
    values = jnp.broadcast_to(early[:, :, None, None], (*call.k.shape[:3], 1))
    return call.sums(values)


def _distance(call: _Call) -> Array:
    reach = _reach(call)
    table = jnp.abs(jnp.arange(-reach, reach + 1, dtype=call.dtype))[:, None]
    nothing = jnp.zeros_like(call.ones())
    return divide(call.sums(RelativeValues(nothing, table)), _mass(call))


def _key_mass(call: _Call) -> Array:
    B, S, N = *call.k.shape[:2], call.q.shape[2]
    total = lambda v: call.sums(v).sum()
    given = jax.grad(total)(jnp.zeros((B, S, N, 1), call.dtype))
    return given[..., 0].swapaxes(1, 2)


def _largest_weight(call: _Call) -> Array:
    out = call.sums(call.ones(), normalizer=of_top(call.normalizer))
    return lax.stop_gradient(out) if call.normalizer.stages else out


def _top_mass(call: _Call) -> Array:
    n = call.normalizer
    if n.stages:
        raise ValueError(f"measure: top_mass under {n}, expected a one-pass normalizer")
    level = lax.stop_gradient(_level(call))
    keep = mods.mod(_at_least, query=level - _slack(level))
    q, k = call.q.astype(call.dtype), call.k.astype(call.dtype)
    more = {"mods": (*call.terms.get("mods", ()), keep)}
    state = lambda **more: attend_state(q, k, call.ones(), impl=call.impl, **(call.terms | more))
    kept, whole = state(**more), state()
    values = kept.values * n.rescale(kept.m, whole.m)
    params = tuple(jnp.reshape(jnp.asarray(p), (1, -1, 1, 1)) for p in n.params)
    ready = replace(n, params=params)
    return normalizers.finish(ready, whole._replace(values=values))[..., 0]


def _level(call: _Call) -> Array:
    """The score that `top` keys of each row reach, (B,T,N)."""
    rows = lambda x: x[..., 0].swapaxes(1, 2)
    high = jnp.full(call.q.shape[:3], jnp.finfo(call.dtype).max / 2, call.dtype)
    start = pvary_like((high, jnp.zeros_like(high), high), (call.q, call.k))

    def one_lower(carry: tuple[Array, Array, Array], _: None) -> tuple[Any, None]:
        bound, found, level = carry
        state = call.scores(mods.mod(_below, query=bound))
        m, count = rows(state.m), rows(state.sums[0])
        more = (found < call.top) & (m > lowest(m.dtype))
        bound = jnp.where(more, m - _slack(m), bound)
        return (bound, found + jnp.where(more, count, 0.0), jnp.where(more, m, level)), None

    return lax.scan(one_lower, start, None, length=call.top)[0][2]


def _slack(m: Array) -> Array:
    """Scores so near count as equal: passes may round one differently."""
    return 64 * jnp.finfo(m.dtype).eps * jnp.maximum(jnp.abs(m), 1.0)


def _below(score: Array, bound: Array) -> Array:
    return jnp.where(score < bound, score, -jnp.inf)


def _at_least(score: Array, bound: Array) -> Array:
    return jnp.where(score >= bound, score, -jnp.inf)


# ------------------------------------------------------------------------------------- positions


def _lengths(call: _Call) -> tuple[int, int]:
    """Those of the whole text, of which some tokens may be here."""
    return sharding_of(call.impl).lengths(call.q.shape[1], call.k.shape[1])


def _positions(call: _Call) -> Array:
    """Of the keys here, (S,) or (B,S)."""
    given = call.terms.get("k_positions")
    if given is not None:
        return jnp.asarray(given)
    return sharding_of(call.impl).own(jnp.arange(_lengths(call)[1]), 0)


def _reach(call: _Call) -> int:
    """No two tokens are further apart."""
    reach = max(_lengths(call))
    for name in ("q_positions", "k_positions"):
        given = call.terms.get(name)
        if isinstance(given, Tracer):
            raise ValueError(f"measure: distance of traced {name}, expected known ones, or none")
        if given is not None:
            reach = max(reach, int(np.abs(np.asarray(given)).max(initial=0)) + 1)
    return reach


STATISTICS: dict[str, Callable[[_Call], Array]] = {
    "mass": _mass,
    "entropy": _entropy,
    "largest_weight": _largest_weight,
    "largest_score": _largest_score,
    "top_mass": _top_mass,
    "first_mass": _first_mass,
    "distance": _distance,
    "zeros": _zeros,
    "key_mass": _key_mass,
}
