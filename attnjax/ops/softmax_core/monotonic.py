"""Monotonic attention: queries walk along the keys and stop where a coin says so, in expectation.

    p_ij = sigmoid(q_i . k_j / sqrt(H) + r_n)             chance to stop at key j, having come there
    a_ij = p_ij b_ij,    b_ij = (1 - p_i,j-1) b_i,j-1 + a_i-1,j,    a_-1 = (1, 0, 0, ...)
    monotonic    out_i = sum_j a_ij v_j
    chunkwise    out_i = sum_l a_il sum_j softmax_j(u_ij over l - chunk < j <= l) v_j,
                 u_ij = near_q_i . near_k_j / sqrt(H)

Query i starts where query i - 1 stopped.  What is left of a row's sum has walked off the end, and
is missing in all later rows.  The recurrence over keys runs in parallel, that over queries cannot.

Heads that are dropped at random in training, for all of them to learn an alignment (HeadDrop), are
    kept = jax.random.bernoulli(key, 0.5, (N,)); out = out * (kept * N / kept.sum())[:, None]

Paper: Zhao et al., "Adaptive Sparse and Monotonic Attention for Transformer-based Automatic Speech
Recognition", 2022, arXiv:2209.15176, after Raffel et al., "Online and Linear-Time Attention by
Enforcing Monotonic Alignments", 2017, arXiv:1704.00784; Chiu and Raffel, "Monotonic Chunkwise
Attention", 2018, arXiv:1712.05382; Ma et al., "Monotonic Multihead Attention", 2020,
arXiv:1909.12406.  The sparse part is `entmax_attention`.
Limits: a large r stays at the first key; chunks of one key are monotonic attention.
Differs: the first text was not at hand; the forms are those of hirofumi0810/neural_sp, which
divides by the root of all heads' width, clips exp(u) at 1e-5 of its largest, and adds normal noise
to the scores in training.  Its parallel form divides by a product that it clips at 1e-6.
"""

import functools

import jax.numpy as jnp
from jax import lax

from attnjax.core import masks, mods, normalizers
from attnjax.core.chunks import scan_chunks
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import divide, wide
from attnjax.core.pairwise.attend import attend, attention_scores, attention_weights
from attnjax.core.scan.diagonal import linear_scan
from attnjax.core.sharding import on_any_mesh, pvary_like
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, K, Out, PerHead, Q, V, Weights


@on_any_mesh
def monotonic_attention(
    q: Q, k: K, v: V, bias: PerHead, *, mask: masks.Mask = masks.everything
) -> Out:
    """What each query reads where it is expected to stop; `bias` is r, -4 or so at first.

    A key that `mask` forbids is walked past; a query with none stops nowhere, nor do later ones.
    T steps, one after the other, and O(T S) memory.
    """
    return _read(monotonic_alignment(q, k, bias, mask=mask), q, k, v, mask)


@on_any_mesh
def monotonic_chunkwise_attention(
    q: Q,
    k: K,
    v: V,
    near_q: Q,
    near_k: K,
    bias: PerHead,
    *,
    chunk: int = 4,
    mask: masks.Mask = masks.everything,
) -> Out:
    """Softmax attention to the `chunk` keys that end where a query is expected to stop.

    Queries and keys `near_q` and `near_k` weigh the keys of a chunk; O(chunk T S) memory.
    """
    if chunk < 1:
        raise ValueError(f"chunk: {chunk}; expected at least 1")
    stops = monotonic_alignment(q, k, bias, mask=mask)
    u = attention_scores(wide(near_q), wide(near_k), mask=mask)
    return _read(_spread(stops, u, min(chunk, k.shape[1])), q, k, v, mask)


@on_any_mesh
def monotonic_alignment(
    q: Q, k: K, bias: PerHead, *, mask: masks.Mask = masks.everything
) -> Weights:
    """a: the chance that query i stops at key j, wide; a row sums to one at most."""
    coin = normalizers.sigmoid(wide(bias))
    return _alignment(attention_weights(wide(q), wide(k), mask=mask, normalizer=coin))


@compiled()
def _alignment(p: Weights) -> Weights:
    """The recurrence over queries, of the chances p."""

    def step(before: Array, p: Array) -> tuple[Array, Array]:
        p = p[:, 0]  # (B,N,S)
        nobody = jnp.zeros_like(p[..., :1])
        passed = jnp.concatenate([nobody, 1.0 - p[..., :-1]], axis=-1)
        stops = p * linear_scan(passed, before, nobody[..., 0], axis=2)
        return stops, stops[:, None]

    first = jnp.zeros_like(p[:, :, 0]).at[..., 0].set(1.0)
    _, stops = scan_chunks(step, pvary_like(first, p), jnp.moveaxis(p, 2, 1), 1)
    return jnp.moveaxis(stops, 1, 2)


def _spread(stops: Weights, u: Weights, chunk: int) -> Weights:
    """The chance of each stop, over the keys of its chunk by the softmax of u in it."""
    keys = u.shape[-1]
    behind = [_shifted(u, back, -jnp.inf) for back in range(chunk)]  # u of the key so far behind
    top = functools.reduce(jnp.maximum, behind)
    top = lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))
    powers = [jnp.exp(x - top) for x in behind]
    share = divide(stops, functools.reduce(jnp.add, powers))
    parts = [(share * e)[..., back:] for back, e in enumerate(powers)]
    pad = lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, keys - x.shape[-1])])
    return functools.reduce(jnp.add, map(pad, parts))


def _shifted(x: Weights, back: int, fill: float) -> Weights:
    """x of the key `back` places before."""
    pad = [(0, 0)] * 3 + [(back, 0)]
    return jnp.pad(x, pad, constant_values=fill)[..., : x.shape[-1]]


def _read(weights: Weights, q: Q, k: K, v: V, mask: masks.Mask) -> Out:
    """The sum of weights times values, by the engine: scores are weights, which relu leaves."""
    as_scores = mods.mod(_replaced, pair=weights)
    return attend(q, k, v, mods=(as_scores,), mask=mask, normalizer=normalizers.relu())


def _replaced(score: Array, weight: Array) -> Array:
    return weight


def _first(q: Q, v: V) -> Out:
    first = jnp.repeat(v[:, :1], q.shape[2] // v.shape[2], axis=2)
    return jnp.broadcast_to(first, (*q.shape[:3], v.shape[-1]))


def _alone(q: Q, k: K, v: V, bias: PerHead) -> Float[Array, "B T N D"]:
    return monotonic_attention(q, k, v, bias)


OPS = (
    Op(
        monotonic_attention,
        papers=(225,),
        limits=(Limit("a large r stays at the first key", {"bias": fill(100.0)}, _first),),
    ),
    Op(
        monotonic_chunkwise_attention,
        papers=(225,),
        draw={"chunk": 3},
        limits=(Limit("chunks of one key are monotonic attention", {"chunk": 1}, _alone),),
    ),
)
