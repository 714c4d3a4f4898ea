"""LAVO: softmax over a window of tokens and R orthogonal directions that sum up all tokens so far.

    c_t = mean_{s <= t} B x_s (R,),    M_t = diag(c_t) B: the rows are orthogonal where B's are
    out_t = softmax over the rows of M_t W_k and the last `window` keys k_s = x_s W_k together,
            with values M_t W_v and x_s W_v; scores q_t . k / sqrt(H), + bias[t - s] for tokens

Paper: Zhang et al., "Linear Attention via Orthogonal Memory", 2023, arXiv:2312.11135.
Limits: no directions (R = 0) leave sliding-window attention.
Differs: the relative position code of the window is a learned bias for each distance; one softmax
over both parts is our reading, which no code was there to confirm.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, normalizers
from attnjax.core.mods import mod, relative_bias
from attnjax.core.numerics import einsum, wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float, Int

X = Float[Array, "B T W"]


class Weights(NamedTuple):
    """Learned, or fixed; the rows of `bases` are orthonormal."""

    bases: Float[Array, "R W"]
    q: Float[Array, "W N H"]
    k: Float[Array, "W K H"]
    v: Float[Array, "W K D"]
    bias: Float[Array, "N window"]


class State(NamedTuple):
    """The sum of B x, the number of tokens, and the last of them, zeros where there were fewer."""

    total: Float[Array, "B R"]
    count: Int[Array, ""]
    before: Float[Array, "B window-1 W"]


@of_whole_text
@on_any_mesh
def lavo(
    x: X,
    weights: Weights,
    *,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """(B,T,W) -> (B,T,N,D), causal; O(T (R + window)) time and a state of constant size."""
    w = Weights(*map(wide, weights))
    T, window = x.shape[1], w.bias.shape[1]
    if state is None:
        state = _empty(x, w)
    q = einsum("BTW,WNH->BTNH", x, w.q) / math.sqrt(w.q.shape[-1])
    coefficients = einsum("BTW,RW->BTR", x, w.bases)
    totals = state.total[:, None] + jnp.cumsum(coefficients, axis=1)
    counts = state.count + jnp.arange(1, T + 1)
    memory = _memory_state(q, totals / counts[None, :, None].astype(totals.dtype), w)

    tokens = jnp.concatenate([state.before, wide(x)], axis=1)
    is_token = jnp.arange(window - 1 + T) >= window - 1 - state.count
    hide = mod(jnp.add, key=jnp.where(is_token, 0.0, -1e30))  # a count is no static mask
    near = attend_state(
        q,
        einsum("BSW,WKH->BSKH", tokens, w.k),
        einsum("BSW,WKD->BSKD", tokens, w.v),
        mods=(relative_bias(_table(w.bias)), hide),
        mask=masks.window(window - 1),
        scale=1.0,
        q_positions=np.arange(window - 1, window - 1 + T),
        impl=impl,
    )
    out = join_states(memory, near).astype(x.dtype)
    if not return_state:
        return out
    return out, State(totals[:, -1], state.count + T, tokens[:, T:])


def _empty(x: X, w: Weights) -> State:
    """The state before the first token."""
    R, W = w.bases.shape
    window = w.bias.shape[1]
    total = jnp.zeros((len(x), R), w.bases.dtype)
    before = jnp.zeros((len(x), window - 1, W), w.bases.dtype)
    return State(total, jnp.int32(0), before)


def _memory_state(
    q: Float[Array, "B T N H"], means: Float[Array, "B T R"], w: Weights
) -> normalizers.State:
    """What attention to the rows of M_t = diag(means_t) B leaves behind, before the division."""
    N = q.shape[2]
    keys = jnp.repeat(einsum("RW,WKH->RKH", w.bases, w.k), N // w.k.shape[1], axis=1)
    values = jnp.repeat(einsum("RW,WKD->RKD", w.bases, w.v), N // w.v.shape[1], axis=1)
    means = means[:, None]  # (B,1,T,R)
    scores = means * einsum("BTNH,RNH->BNTR", q, keys)
    weights, top, sums = normalizers.unnormalized(normalizers.softmax, scores, None)
    return normalizers.State(top, sums, einsum("BNTR,RND->BNTD", weights * means, values))


def _table(bias: Float[Array, "N window"]) -> Float[Array, "N R"]:
    """A bias of each distance t - s >= 0 as one of each relative position s - t."""
    return jnp.pad(bias[:, ::-1], ((0, 0), (0, bias.shape[1] - 1)))


def _window(x: X, weights: Weights) -> Array:
    q = einsum("BTW,WNH->BTNH", x, weights.q)
    k = einsum("BTW,WKH->BTKH", x, weights.k)
    v = einsum("BTW,WKD->BTKD", x, weights.v)
    window = weights.bias.shape[1]
    bias = relative_bias(_table(weights.bias))
    return attend(q, k, v, mods=(bias,), mask=masks.window(window - 1))


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
