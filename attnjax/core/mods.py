"""Score modifications: elementwise functions of a score and of operands of its query and key.

    score' = fn(score, operand, operand, ...)

Each operand is tagged by what it belongs to (the kinds of `operands`), so one definition serves
the dense matrix, a tile, a ring step and a decoding step, and gradients reach every operand.  `fn`
sees arrays that broadcast against each other and must not care about their shapes.

`fn` may read numbers from elsewhere, closures, globals, attributes: they are looked up at each call
of `attend` (under jit, when it is traced, as for any function).  It may not carry traced arrays
(they could not be cut into tiles, and would get no gradient): hand them over as operands.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from attnjax.core import elementwise
from attnjax.core.closures import by_value, name_of, traced_closure
from attnjax.core.pairwise.operands import (
    NOWHERE,
    Places,
    Shape,
    Tile,
    lay_out,
    of_text,
    without_nan,
)
from attnjax.core.pairwise.relative import look_up
from attnjax.core.sharding import LOCAL, SequenceSharding
from attnjax.core.values import Value
from attnjax.typing import Array, Float, PerHead, PerQuery, V

Fn = Callable[..., Array]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x"], meta_fields=[])
@dataclass(frozen=True)
class Cumsum(Value):
    """An operand that is the running sum of x (T,) or (B,T,N), taken where the tokens are."""

    x: Array


class Poison(NamedTuple):
    """What is added to the scores of queries (B|1,N|1,T|1,1) and keys (B|1,N|1,1,S|1): 0 or NaN."""

    query: Array
    key: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["operands"],
    meta_fields=["fn", "kinds", "positions", "contract", "group"],
)
@dataclass(frozen=True)
class Mod(Value):
    """A score modification; made by `mod` and the functions below, not by hand.

    fn         (score, [q_position, k_position,] *operands) -> score
    operands   one array, or `Running`, per entry of `kinds`
    positions  fn also takes the positions of query and key, as integers
    contract   fn is (*operands) -> term, and sum over features of the terms replaces the score
    group      if not 1, fn is (score, allowed, ...) and may look at all scores of a query with the
               keys group*c .. group*c + group-1, see `log_sum_exp`; `allowed` None allows all
    """

    fn: Fn
    kinds: tuple[str, ...]
    operands: tuple[Any, ...]
    positions: bool = False
    contract: bool = False
    group: int = 1

    def laid_out(
        self,
        z: Shape,
        dtype: jnp.dtype,
        sharding: SequenceSharding = LOCAL,
        at: Places = NOWHERE,
    ) -> tuple["Mod", Poison]:
        """The same mod with operands of the working dtype, in the layout of their kinds.

        Operands for more queries or keys than there are are those of a text, read `at` positions.

        Operands of queries and keys hold zeros for NaN; which queries and keys had one is told
        beside them.  A key operand that differs between query heads which share a key keeps its
        NaN, and so do operands of heads, pairs and tables of distances.
        """
        _refuse_traced_closure(self.fn)
        fn = by_value(self.fn)
        if not self.contract and self.group == 1:
            arrays = [x.x if isinstance(x, Cumsum) else x for x in self.operands]
            elementwise.check(fn, elementwise.shapes_of(self.kinds, arrays, self.positions, dtype))
        whole = replace(z, S=sharding.columns(z.S))
        sums: dict[int, Array] = {}  # of an operand that serves as two: once
        poison = {side: jnp.zeros((1, 1, 1, 1), dtype) for side in ("query", "key")}

        def lay(kind: str, x: Array | Cumsum) -> Array:
            if isinstance(x, Cumsum):
                if id(x) not in sums:
                    sums[id(x)] = sharding.cumsum(x.x, 1 if jnp.ndim(x.x) == 3 else 0)
                x = sums[id(x)]
            x = of_text(kind, jnp.asarray(x).astype(dtype), z, at)
            laid = lay_out(kind, x, whole if kind == "pair" else z)
            side = kind.split("_")[0]
            if side not in ("query", "key") or (side == "key" and x.ndim > 1 and x.shape[2] != z.K):
                return laid
            laid, bad = without_nan(kind, laid)
            poison[side] = poison[side] + bad
            return laid

        operands = tuple(map(lay, self.kinds, self.operands))
        return replace(self, fn=fn, operands=operands), Poison(**poison)

    def __call__(
        self, score: Array, operands: tuple[Array, ...], tile: Tile, allowed: Array | None
    ) -> Array:
        """The modified score of one tile, given the operands already cut to it."""
        if self.contract:
            return _contracted(self.fn, score, operands)
        cut = [
            look_up(kind, x, tile) if kind.endswith("table") else x
            for kind, x in zip(self.kinds, operands, strict=True)
        ]
        if self.positions:
            cut = [tile.q.positions[:, None], tile.k.positions[None, :], *cut]
        if self.group != 1:
            return self.fn(score, allowed, *cut)
        return jnp.broadcast_to(self.fn(score, *cut), score.shape)


@functools.partial(jax.jit, static_argnums=0)
def _contracted(fn: Fn, score: Array, operands: tuple[Array, ...]) -> Array:
    """One feature at a time: (t, s) memory, not (t, s, R), in the backward pass as well."""
    term = jax.checkpoint(lambda total, xs: (total + fn(*xs), None))
    return lax.scan(term, jnp.zeros_like(score), operands)[0]


def _refuse_traced_closure(fn: Fn) -> None:
    if (held := traced_closure(fn)) is not None:
        raise ValueError(
            f"mods: {name_of(fn)} closes over a traced array {held.aval.str_short()}, expected it "
            f"as an operand: mod(fn, query=..., key=..., head=..., pair=..., table=...)"
        )


def _tuple(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def mod(
    fn: Fn,
    *,
    query: Array | Cumsum | tuple[Array | Cumsum, ...] = (),
    key: Array | Cumsum | tuple[Array | Cumsum, ...] = (),
    head: Array | tuple[Array, ...] = (),
    pair: Array | tuple[Array, ...] = (),
    table: Array | tuple[Array, ...] = (),
    query_table: Array | tuple[Array, ...] = (),
    key_table: Array | tuple[Array, ...] = (),
    positions: bool = False,
    group: int = 1,
) -> Mod:
    """A mod from any elementwise function: fn(score, [q_pos, k_pos,] *operands) -> score.

    Operands reach fn in the order of the keywords here; a keyword takes one array or a tuple.
    query (T,) or (B,T,N); key (S,) or (B,S,K|N); head () or (N,); pair broadcastable to
    (B,N,T,S); table (R,) or (N,R), query_table (B,T,N,R) and key_table (B,S,K|N,R) with
    R = 2*radius+1 entries, read at radius + clip(k_pos - q_pos, -radius, radius).  A query or key
    operand may be `Cumsum(x)`: the sum over the tokens up to each, wherever the tokens are.

    With `group`, fn(score, allowed, ...) sees whole groups of that many neighboring keys and may
    reduce over one by `log_sum_exp`.  It is then the only kind of mod that sees the mask.
    """
    given = {
        "query": query,
        "key": key,
        "head": head,
        "pair": pair,
        "table": table,
        "query_table": query_table,
        "key_table": key_table,
    }
    kinds, operands = [], []
    for kind, value in given.items():
        for x in _tuple(value):
            if kind.endswith("table") and np.shape(x)[-1:] and np.shape(x)[-1] % 2 == 0:
                raise ValueError(
                    f"mods: {kind} has {np.shape(x)[-1]} entries, expected an odd number "
                    "2*radius+1 (one for each relative position -radius..radius)"
                )
            kinds.append(kind)
            operands.append(x)
    if not isinstance(group, int) or group < 1:
        raise ValueError(f"mods: group is {group!r}, expected an integer of at least 1")
    return Mod(fn, tuple(kinds), tuple(operands), positions, group=group)


def group_of(mods: Iterable[Mod]) -> int:
    """The number of neighboring keys that has to stay in one tile."""
    return math.lcm(*(m.group for m in mods))


def log_sum_exp(score: Array, allowed: Array | None, group: int) -> Array:
    """log of the sum of exp(score) over the allowed keys of each group, given to each of its keys.

    For the fn of a mod with that `group`.  A group with nothing allowed has the lowest number.
    """
    S = score.shape[-1]
    low = float(jnp.finfo(score.dtype).min) / 4
    s = score if allowed is None else jnp.where(allowed, score, low)
    s = jnp.pad(s, [(0, 0)] * (s.ndim - 1) + [(0, -S % group)], constant_values=low)
    s = s.reshape(*s.shape[:-1], s.shape[-1] // group, group)
    total = jax.nn.logsumexp(s, axis=-1, keepdims=True)
    each = jnp.broadcast_to(total, s.shape)
    return each.reshape(*score.shape[:-1], each.shape[-2] * group)[..., :S]


# ------------------------------------------------------------------------------ the usual ones


def _add(score: Array, *terms: Array) -> Array:
    return functools.reduce(jnp.add, terms, score)


def _scaled(score: Array, factor: Array) -> Array:
    """A score of -inf, which another mod hid, stays so, and gives the factor no gradient of NaN."""
    hidden = score == -jnp.inf
    return jnp.where(hidden, score, jnp.where(hidden, 0.0, score) * factor)


def _add_difference(score: Array, c: Array, b: Array) -> Array:
    return score + (c - b)


def _alibi(score: Array, q_pos: Array, k_pos: Array, slope: Array) -> Array:
    return score - slope * jnp.abs(q_pos - k_pos).astype(score.dtype)


def _soft_cap(score: Array, cap: Array) -> Array:
    return cap * jnp.tanh(score / cap)


def _additive_term(query: Array, key: Array, weight: Array) -> Array:
    return weight * jnp.tanh(query + key)


def _array(name: str, x: Any) -> Any:
    """One array, also where it is given as a list of numbers."""
    if isinstance(x, Cumsum) or hasattr(x, "dtype"):
        return x
    if isinstance(x, (list, tuple, int, float)) and not isinstance(x, bool):
        try:
            return jnp.asarray(x)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} is {x!r}, expected an array of numbers")


def alibi(slopes: PerHead) -> Mod:
    """score - slope_n |i - j|.  Press et al. 2021, arXiv:2108.12409."""
    return mod(_alibi, head=_array("alibi: slopes", slopes), positions=True)


def alibi_slopes(N: int) -> PerHead:
    """The paper's slopes 2^(-8 n / N), n = 1..N; other N borrow every second one of 2N's.

    Raises ValueError for N below 1.
    """
    if isinstance(N, bool) or not isinstance(N, int | np.integer) or N < 1:
        raise ValueError(f"alibi_slopes: N is {N!r}, expected an integer of at least 1")
    whole = 2 ** int(np.log2(N))
    geometric = lambda n: 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
    return jnp.asarray(np.concatenate([geometric(whole), geometric(2 * whole)[::2][: N - whole]]))


def soft_cap(cap: float | Array) -> Mod:
    """cap * tanh(score / cap), |score| < cap; cap () or (N,).  Gemma Team 2024, arXiv:2408.00118.

    Raises ValueError for a cap that is known not to be positive: no cap is no mod at all.
    """
    cap = _array("soft_cap: cap", cap)
    if not isinstance(cap, Tracer) and not (np.asarray(cap, np.float64) > 0).all():
        raise ValueError(f"soft_cap: cap is {cap}, expected above 0; where there is none, no mod")
    return mod(_soft_cap, head=jnp.asarray(cap))


def relative_bias(table: Float[Array, "*N R"]) -> Mod:
    """score + table[n, radius + clip(j - i, -radius, radius)], R = 2*radius + 1."""
    return mod(_add, table=_array("relative_bias: table", table))


def t5_buckets(buckets: int, *, bidirectional: bool = True, max_distance: int = 128) -> np.ndarray:
    """The bucket of each relative position j - i in -max_distance..max_distance, as integers.

    Half of the buckets are exact distances, the other half grow logarithmically up to
    max_distance.  Raffel et al. 2019, arXiv:1910.10683.

    Raises ValueError for fewer than two buckets, four if bidirectional, and for a max_distance
    within the exact ones.
    """
    exact = buckets // (4 if bidirectional else 2)
    if exact < 1:
        told = "four at least, half of them for each side" if bidirectional else "two at least"
        raise ValueError(f"t5_buckets: buckets is {buckets}, expected {told}")
    if max_distance <= exact:
        raise ValueError(
            f"t5_buckets: max_distance is {max_distance}, expected above {exact}, the number of "
            "exact distances"
        )
    distance = np.arange(-max_distance, max_distance + 1)
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        n = np.abs(distance)
    else:
        n = np.maximum(-distance, 0)
    ratio = np.log(np.maximum(n, 1) / exact) / np.log(max_distance / exact)
    far = np.minimum(exact + (ratio * (buckets - exact)).astype(int), buckets - 1)
    return offset + np.where(n < exact, n, far)


def t5_bias(
    table: Float[Array, "N buckets"], *, bidirectional: bool = True, max_distance: int = 128
) -> Mod:
    """score + table[n, bucket(j - i)].  Raffel et al. 2019, arXiv:1910.10683."""
    table = _array("t5_bias: table", table)
    if jnp.ndim(table) not in (1, 2):
        raise ValueError(f"t5_bias: table has shape {jnp.shape(table)}, expected (N, buckets)")
    at = t5_buckets(table.shape[-1], bidirectional=bidirectional, max_distance=max_distance)
    return relative_bias(jnp.asarray(table)[..., at])


def query_relative(table: Float[Array, "B T N R"]) -> Mod:
    """score + table[b, i, n, radius + clip(j - i, -radius, radius)]: a table for each query."""
    return mod(_add, query_table=_array("query_relative: table", table))


def key_relative(table: Float[Array, "B S N R"]) -> Mod:
    """score + table[b, j, n, radius + clip(j - i, -radius, radius)]: a table for each key."""
    return mod(_add, key_table=_array("key_relative: table", table))


def pair_bias(bias: Float[Array, "*B N T S"]) -> Mod:
    """score + bias, bias broadcastable to (B,N,T,S)."""
    return mod(_add, pair=_array("pair_bias: bias", bias))


def is_pair_bias(m: Mod) -> bool:
    """Whether a mod only adds one pair operand: all that libraries with a `bias` can do."""
    return m.fn is _add and m.kinds == ("pair",)


def per_head_scale(scale: PerHead) -> Mod:
    """score * scale_n."""
    return mod(_scaled, head=_array("per_head_scale: scale", scale))


def forget(log_f: PerQuery) -> Mod:
    """score + c_t - c_j, c the running sum of log_f <= 0; self-attention only (T = S).

    Gates below e^-60 act as e^-60: a gate of zero would make differences of infinities.  The
    sum is taken in float32 (or float64).  Lin et al. 2025, arXiv:2503.02130.
    """
    wide = jnp.promote_types(log_f.dtype, jnp.float32)
    c = Cumsum(jnp.maximum(log_f.astype(wide), -60.0))
    return mod(_add_difference, query=c, key=c)


def additive(
    query: Float[Array, "B T N R"],
    key: Float[Array, "B S K R"],
    weight: Float[Array, "*N R"],
) -> Mod:
    """sum_r weight_r tanh(query_ir + key_jr), in place of the score.

    Bahdanau et al. 2014, arXiv:1409.0473.  No scale is applied; q and k of `attend` give only
    shapes here.  O(T + S) memory; time R times that of one elementwise pass over the scores.
    """
    kinds = ("query_features", "key_features", "head_features")
    return Mod(_additive_term, kinds, (query, key, weight), contract=True)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["v", "table"], meta_fields=[])
@dataclass(frozen=True)
class RelativeValues(Value):
    """Values with a part that depends on the relative position; made by `relative_values`."""

    v: Array
    table: Array


def relative_values(v: V, table: Float[Array, "R D"]) -> RelativeValues:
    """To be passed to attend as v: out_i = sum_j w_ij (v_j + table[radius + clip(j - i)]).

    Shaw et al. 2018, arXiv:1803.02155.  The table is shared by the heads.
    """
    if table.ndim != 2 or table.shape[0] % 2 == 0 or table.shape[1] != v.shape[-1]:
        raise ValueError(
            f"relative_values: table has shape {table.shape}, expected (R,D) with odd R = "
            f"2*radius+1 and D = {v.shape[-1]}"
        )
    return RelativeValues(v, table)
