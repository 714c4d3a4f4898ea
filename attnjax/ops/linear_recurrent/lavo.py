"""LAVO: softmax over a window of tokens and R orthogonal directions that sum up all tokens so far.

    c_t = mean_{s <= t} B x_s (R,),    M_t = diag(c_t) B: the rows are orthogonal where B's are
    out_t = softmax over the rows of M_t W_k and the last `window` keys k_s = x_s W_k together,
            with values M_t W_v and x_s W_v; scores q_t . k / sqrt(H), + bias[t - s] for tokens

Paper: Zhang et al., "Linear Attention via Orthogonal Memory", 2023, arXiv:2312.11135.
Limits: no directions (R = 0) leave sliding-window attention.
Differs: the relative position code of the window is a learned bias for each distance.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.mods import mod, relative_bias
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float, Int

X = Float[Array, "B T W"]


class Weights(NamedTuple):  # learned, or fixed; the rows of `bases` are orthonormal
    bases: Float[Array, "R W"]
    q: Float[Array, "W N H"]
    k: Float[Array, "W K H"]
    v: Float[Array, "W K D"]
    bias: Float[Array, "N window"]


class State(NamedTuple):  # the sum of B x, the number of tokens, and the last of them
    total: Float[Array, "B R"]
    count: Int[Array, ""]
    before: Float[Array, "B window-1 W"]


def lavo(
    x: X,
    weights: Weights,
    *,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """(B,T,W) -> (B,T,N,D), causal; O(T (R + window)) time and a state of constant size."""
    (B, T, W), w = x.shape, Weights(*map(wide, weights))
    R, (N, window), H = len(w.bases), w.bias.shape, w.q.shape[-1]
    if state is None:
        zeros = lambda *shape: jnp.zeros(shape, w.bases.dtype)
        state = State(zeros(B, R), jnp.int32(0), zeros(B, window - 1, W))
    tokens = jnp.concatenate([state.before, wide(x)], axis=1)
    q = _product("BTW,WNH->BTNH", wide(x), w.q) / math.sqrt(H)
    k, v = _product("BSW,WKH->BSKH", tokens, w.k), _product("BSW,WKD->BSKD", tokens, w.v)
    totals = state.total[:, None] + jnp.cumsum(_product("BTW,RW->BTR", wide(x), w.bases), axis=1)
    means = (totals / (state.count + jnp.arange(1, T + 1))[:, None])[:, :, None]
    rows = lambda a: jnp.repeat(_product("RW,WKH->RKH", w.bases, a), N // a.shape[1], axis=1)
    scores = means * _product("BTNH,RNH->BTNR", q, rows(w.k))
    least = jnp.full((B, T, N, 1), -1e30, q.dtype)  # where there are no directions
    mass = jax.nn.logsumexp(jnp.concatenate([scores, least], -1), axis=-1, keepdims=True)
    recalled = _product("BTNR,RND->BTND", jnp.exp(scores - mass) * means, rows(w.v))
    # the window sees the memory as a key at 0: its score a new feature, its weight a new value
    early = jnp.where(jnp.arange(window + T) < window - state.count, -1e30, 0.0)
    table = jnp.pad(w.bias[:, ::-1], ((0, 0), (0, window - 1)))
    k, v = (jnp.pad(a, ((0, 0), (1, 0), (0, 0), (0, 1))).at[:, 0, :, -1].set(1.0) for a in (k, v))
    out = attend(
        jnp.concatenate([q, mass], axis=-1),
        k,
        v,
        mods=(mod(_near, key=early, table=table, positions=True),),
        mask=masks.prefix(1) | masks.window(window - 1),
        scale=1.0,
        q_positions=jnp.arange(window, window + T),
        impl=impl,
    )
    out = (out[..., :-1] + out[..., -1:] * recalled).astype(x.dtype)
    return (out, State(totals[:, -1], state.count + T, tokens[:, T:])) if return_state else out


_product = partial(jnp.einsum, precision="highest")
_near = lambda score, i, j, early, bias: jnp.where(j == 0, score, score + early + bias)


def _window(x: X, weights: Weights) -> Array:
    q, k, v = (_product("BTW,WNH->BTNH", x, w) for w in weights[1:4])
    table = jnp.pad(weights.bias[:, ::-1], ((0, 0), (0, 2)))
    return attend(q, k, v, mods=(relative_bias(table),), mask=masks.window(2))


def _orthonormal(weights: Weights) -> Weights:
    R, W = weights.bases.shape
    square = np.concatenate([weights.bases, np.eye(W)])
    return weights._replace(bases=np.linalg.qr(square.T)[0].T[:R])


def _no_directions(weights: Weights) -> Weights:
    return weights._replace(bases=weights.bases[:0])


OPS = (
    Op(
        lavo,
        papers=(209,),
        draw={"weights": adjusted(_orthonormal)},
        sizes={"R": 5, "window": 3},
        limits=(Limit("no directions: a window", {"weights": adjusted(_no_directions)}, _window),),
    ),
)
