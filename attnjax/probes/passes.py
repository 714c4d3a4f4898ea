"""How often a form of attention goes over its keys: cascades of einsums, counted and run.

    three    m = max_j s_j;   e_j = exp(s_j - m), d = sum_j e_j;   a_j = e_j / d, o = sum_j a_j v_j
    deferred m = max_j s_j;   e_j = exp(s_j - m), d = sum_j e_j, n = sum_j e_j v_j;   o = n / d
    two      of each chunk:  m_c = max_j s_cj, e_cj = exp(s_cj - m_c), d_c = sum_j e_cj
             m = max_c m_c, f_c = exp(m_c - m), d = sum_c f_c d_c;   a_cj = f_c e_cj / d
             o = sum_cj a_cj v_cj
    one      chunk by chunk: m' = max(m, max_j s_cj), e_cj = exp(s_cj - m'), f = exp(m - m'),
             d' = f d + sum_j e_cj, n' = f n + sum_j e_cj v_cj;  at the end o = n / d

A step that goes over the keys can share a pass with what it reads key by key, or chunk by chunk, as
a chunk is at hand; what it reads as a sum or a maximum over all of them has to be complete, and so
wants a pass of its own.  What has a number for each chunk alone is worked on between passes.  What
one pass leaves for a later one key by key has the length of the text; one pass leaves nothing.

Nayak et al., "FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design", 2024,
arXiv:2406.10491.  One pass is what `attend` does, blockwise and in kernels.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.chunks import cut, scan_chunks
from attnjax.core.numerics import einsum, repeat_heads, wide
from attnjax.typing import Array, K, Out, Q, V

PAPERS = (371,)


class Einsum(NamedTuple):
    """A step: the tensor it makes, its ranks, what it reads with which ranks, and what it does.

    Ranks are letters: p queries, m keys, or i keys of chunk c, e and f channels.  A tensor that is
    read without a rank that it was made with is read at the end of it: a running sum.  One that
    reads itself reads the place before.
    """

    out: str
    ranks: str
    reads: Mapping[str, str]
    does: str


Cascade = tuple[Einsum, ...]

_NUMERATORS = (
    Einsum("S", "mp", {"Q": "ep", "K": "em"}, "multiply"),
    Einsum("M", "p", {"S": "mp"}, "max"),
    Einsum("E", "mp", {"S": "mp", "M": "p"}, "exp"),
    Einsum("D", "p", {"E": "mp"}, "add"),
)
THREE: Cascade = (
    *_NUMERATORS,
    Einsum("A", "mp", {"E": "mp", "D": "p"}, "divide"),
    Einsum("O", "fp", {"A": "mp", "V": "fm"}, "multiply"),
)
DEFERRED: Cascade = (
    *_NUMERATORS,
    Einsum("N", "fp", {"E": "mp", "V": "fm"}, "multiply"),
    Einsum("O", "fp", {"N": "fp", "D": "p"}, "divide"),
)
TWO: Cascade = (
    Einsum("S", "cip", {"Q": "ep", "K": "eci"}, "multiply"),
    Einsum("LM", "cp", {"S": "cip"}, "max"),
    Einsum("E", "cip", {"S": "cip", "LM": "cp"}, "exp"),
    Einsum("LD", "cp", {"E": "cip"}, "add"),
    Einsum("M", "p", {"LM": "cp"}, "max"),
    Einsum("F", "cp", {"LM": "cp", "M": "p"}, "exp"),
    Einsum("D", "p", {"LD": "cp", "F": "cp"}, "multiply"),
    Einsum("C", "cip", {"E": "cip", "F": "cp"}, "multiply"),
    Einsum("A", "cip", {"C": "cip", "D": "p"}, "divide"),
    Einsum("O", "fp", {"A": "cip", "V": "fci"}, "multiply"),
)
ONE: Cascade = (
    Einsum("S", "cip", {"Q": "ep", "K": "eci"}, "multiply"),
    Einsum("LM", "cp", {"S": "cip"}, "max"),
    Einsum("M", "cp", {"LM": "cp", "M": "cp"}, "max"),
    Einsum("E", "cip", {"S": "cip", "M": "cp"}, "exp"),
    Einsum("F", "cp", {"M": "cp"}, "exp"),
    Einsum("LD", "cp", {"E": "cip"}, "add"),
    Einsum("D", "cp", {"LD": "cp", "F": "cp", "D": "cp"}, "multiply"),
    Einsum("LN", "cfp", {"E": "cip", "V": "fci"}, "multiply"),
    Einsum("N", "cfp", {"LN": "cfp", "F": "cp", "N": "cfp"}, "multiply"),
    Einsum("O", "fp", {"N": "fp", "D": "p"}, "divide"),
)


# ------------------------------------------------------------------------------------- counting


def made_in(cascade: Cascade, keys: str) -> dict[str, float]:
    """When each tensor is there: k in pass k over the keys, k + 1/2 behind it, when it is complete.

    `keys` is their rank, or that of chunks and that of keys in a chunk: "m" or "ci".
    """
    chunk, key = keys[0], keys[-1]
    made: dict[str, float] = {}
    for step in cascade:
        read = [ranks for name, ranks in step.reads.items() if name != step.out]
        when = 0.0
        for name, ranks in step.reads.items():
            if name in made and name != step.out:
                when = max(when, made[name] if chunk in ranks else _behind(made[name]))
        if any(key in ranks for ranks in (step.ranks, *read)):  # it goes over all keys
            when = max(1.0, float(math.ceil(when)))
        made[step.out] = when if chunk in step.ranks else _behind(when)
    return made


def _behind(when: float) -> float:
    """When what is made in a pass is complete; at once if no pass has begun."""
    return math.floor(when) + 0.5 if when else 0.0


def passes(cascade: Cascade, keys: str) -> int:
    """How often the cascade goes over the keys, in any order of its loops."""
    return math.floor(max(made_in(cascade, keys).values(), default=0.0))


def left_behind(cascade: Cascade, keys: str) -> tuple[str, ...]:
    """The tensors with a number for each key that a later pass reads again.

    They need memory as long as the text, or are computed once more.  Given tensors are not told.
    """
    made, key = made_in(cascade, keys), keys[-1]
    later = set()
    for step in cascade:
        again = (name for name, ranks in step.reads.items() if key in ranks and name in made)
        later |= {name for name in again if math.floor(made[name]) < math.floor(made[step.out])}
    return tuple(step.out for step in cascade if step.out in later)


def operations(cascade: Cascade, sizes: Mapping[str, int]) -> Counter[str]:
    """How often each operation is done, the points of the steps that do it."""
    total: Counter[str] = Counter()
    for step in cascade:
        ranks = set(step.ranks).union(*step.reads.values())
        total[step.does] += math.prod(sizes[rank] for rank in ranks)
    return total


# -------------------------------------------------------------------------------------- running


def three_passes(q: Q, k: K, v: V) -> Out:
    """Softmax attention as `THREE` says, step by step, in q's dtype."""
    s = _scores(q, k)
    e = jnp.exp(s - s.max(-1, keepdims=True))
    a = e / e.sum(-1, keepdims=True)
    return einsum("BNTS,BSND->BTND", a, repeat_heads(v, q)).astype(q.dtype)


def deferred_division(q: Q, k: K, v: V) -> Out:
    """As `DEFERRED` says: T N D divisions, where three passes have T N S."""
    s = _scores(q, k)
    e = jnp.exp(s - s.max(-1, keepdims=True))
    n = einsum("BNTS,BSND->BTND", e, repeat_heads(v, q))
    return (n / jnp.moveaxis(e.sum(-1), 1, 2)[..., None]).astype(q.dtype)


def two_passes(q: Q, k: K, v: V, *, chunk: int) -> Out:
    """As `TWO` says, over chunks of `chunk` keys, the last one perhaps shorter."""
    s, values = _scores(q, k), cut(repeat_heads(v, q), chunk)  # (B,c,i,N,D)
    B, N, T, S = s.shape
    c = values.shape[1]
    s = jnp.pad(s, [(0, 0)] * 3 + [(0, c * chunk - S)], constant_values=-jnp.inf)
    s = s.reshape(B, N, T, c, chunk)
    local = s.max(-1)
    e = jnp.exp(s - local[..., None])
    f = jnp.exp(local - local.max(-1, keepdims=True))
    d = jnp.sum(f * e.sum(-1), axis=-1)
    a = f[..., None] * e / d[..., None, None]
    return einsum("BNTci,BciND->BTND", a, values).astype(q.dtype)


def one_pass(q: Q, k: K, v: V, *, chunk: int) -> Out:
    """As `ONE` says: beside a chunk of keys there are a maximum, a sum and an output a query."""
    B, T, N, _ = q.shape
    D, dtype = v.shape[-1], wide(q).dtype
    keys = repeat_heads(k, q), repeat_heads(v, q), jnp.ones(k.shape[:2], dtype)

    def step(state: tuple[Array, ...], tokens: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        m, d, n = state
        k, v, there = tokens
        s = jnp.where(there[:, None, None] > 0, _scores(q, k), -jnp.inf)
        new = jnp.maximum(m, s.max(-1))
        e, f = jnp.exp(s - new[..., None]), jnp.exp(m - new)
        n = f[..., None] * n + einsum("BNTS,BSND->BNTD", e, v)
        return (new, f * d + e.sum(-1), n), None

    start = jnp.full((B, N, T), -jnp.inf, dtype), jnp.zeros((B, N, T), dtype)
    (_, d, n), _ = scan_chunks(step, (*start, jnp.zeros((B, N, T, D), dtype)), keys, chunk)
    return jnp.moveaxis(n / d[..., None], 1, 2).astype(q.dtype)


def _scores(q: Q, k: K) -> Array:
    """(B,N,T,S)."""
    s = einsum("BTNH,BSNH->BNTS", q, repeat_heads(k, q))
    return s * jax.lax.rsqrt(jnp.asarray(q.shape[-1], s.dtype))
