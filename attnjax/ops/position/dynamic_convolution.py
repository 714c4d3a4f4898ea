"""Dynamic convolution attention: weights of a step are those of the last one, moved and reshaped.

    a_i = softmax_j(u . tanh(U f_ij + T g_ij + b) + log max(p_ij, 1e-6)),    a_-1 = (1, 0, 0, ...)
    f_ij = sum_x F_x a_i-1,j+x-c     some filters of width w, c = (w - 1) / 2 places to each side
    g_ij = sum_x G_ix a_i-1,j+x-c,   G_i = W_G tanh(W_Q s_i + b_Q): filters of the decoder's state
    p_ij = sum_k P_k a_i-1,j-k       P the beta-binomial distribution of k = 0 .. 10 places ahead
    out_i = sum_j a_ij v_j

No content of the text enters the weights, and by p they hardly ever move back.

Paper: Battenberg et al., "Location-Relative Attention Mechanisms For Robust Long-Form Speech
Synthesis", 2019, arXiv:1910.10288, section 3; code: coqui-ai/TTS,
`MonotonicDynamicConvolutionAttention`.
Limits: without a vector u the prior alone moves the weights.
Differs: weights of padding are zero here, 1e-8 in the code; neither is divided out.
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.chunks import scan_chunks
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import Affine, aligned, einsum, wide
from attnjax.core.sharding import on_any_mesh, pvary_like
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float, Int

Places = Float[Array, "B S"]


class DynamicConvolution(NamedTuple):
    """W_Q with b_Q, W_G, F, U, T with b, and u; M filters of each kind, A = 128 in the paper."""

    query: Annotated[Affine, "R A"]
    dynamic: Float[Array, "A w M"]
    static: Float[Array, "w M"]
    of_static: Float[Array, "M A"]
    of_dynamic: Annotated[Affine, "M A"]
    score: Float[Array, " A"]


@on_any_mesh
def dynamic_convolution_attention(
    q: Float[Array, "B T R"],
    v: Float[Array, "B S D"],
    weights: DynamicConvolution,
    *,
    ahead: int = 10,
    lengths: Int[Array, " B"] | None = None,
) -> Float[Array, "B T D"]:
    """What T decoder steps read of S places; q are the decoder's states, w an odd number.

    ahead     how many places the prior can move in a step
    lengths   how many places of each example there are, all S if None

    T steps, one after the other.
    """
    if len(weights.static) % 2 == 0:
        raise ValueError(f"weights: filters of width {len(weights.static)}; expected an odd number")
    places = jnp.arange(v.shape[1])[None]
    there = places < (v.shape[1] if lengths is None else lengths[:, None])
    there = jnp.broadcast_to(there, v.shape[:2])
    a = _alignment(q, there.astype(wide(v).dtype), weights, ahead)
    return einsum("BTS,BSD->BTD", a, v).astype(v.dtype)


@compiled("ahead")
def _alignment(
    q: Float[Array, "B T R"], there: Places, weights: DynamicConvolution, ahead: int
) -> Float[Array, "B T S"]:
    """a of each step."""
    filters = einsum("BTA,AwM->BTwM", jnp.tanh(weights.query(q)), weights.dynamic)
    S, dtype = there.shape[1], filters.dtype
    there = there.astype(dtype)
    w, prior = len(weights.static), jnp.asarray(beta_binomial(ahead), dtype)

    def step(before: Places, G: Float[Array, "B 1 w M"]) -> tuple[Places, Array]:
        around = _windows(before, w // 2, w // 2)
        f = einsum("BSw,wM->BSM", around, weights.static)
        g = einsum("BSw,BwM->BSM", around, G[:, 0])
        inner = jnp.tanh(einsum("BSM,MA->BSA", f, weights.of_static) + weights.of_dynamic(g))
        score = jnp.sum(inner * aligned(weights.score, inner), axis=-1)
        moved = jnp.sum(_windows(before, ahead, 0) * prior[None, None, ::-1], axis=-1)
        a = jax.nn.softmax(score + jnp.log(jnp.maximum(moved, 1e-6)), axis=-1) * there
        return a, a[:, None]

    first = jnp.zeros((len(q), S), dtype).at[:, 0].set(1.0)
    return scan_chunks(step, pvary_like(first, filters), filters, 1)[1]


def _windows(a: Places, before: int, behind: int) -> Float[Array, "B S w"]:
    """The weights around each place, zeros beyond the ends."""
    S, padded = a.shape[1], jnp.pad(a, [(0, 0), (before, behind)])
    return jnp.stack([padded[:, i : i + S] for i in range(before + behind + 1)], axis=-1)


def beta_binomial(n: int, alpha: float = 0.1, beta: float = 0.9) -> np.ndarray:
    """P: the distribution of 0 .. n; its mean is n alpha / (alpha + beta)."""
    log_beta = lambda x, y: math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)
    choose = [math.comb(n, k) for k in range(n + 1)]
    logs = [log_beta(k + alpha, n - k + beta) - log_beta(alpha, beta) for k in range(n + 1)]
    return np.array(choose) * np.exp(logs)


def _without_score(weights: DynamicConvolution) -> DynamicConvolution:
    return weights._replace(score=0 * weights.score)


def _by_the_prior(q: Float[Array, "B T R"], v: Float[Array, "B S D"]) -> Float[Array, "B T D"]:
    a, P, out = jnp.zeros(v.shape[1]).at[0].set(1.0), jnp.asarray(beta_binomial(10), v.dtype), []
    for _ in range(q.shape[1]):
        a = jnp.maximum(jnp.convolve(a, P)[: v.shape[1]], 1e-6)
        a = a / a.sum()
        out.append(jnp.einsum("s,bsd->bd", a, v))
    return jnp.stack(out, axis=1)


OPS = (
    Op(
        dynamic_convolution_attention,
        papers=(75,),
        reads="all",
        sizes={"A": 6, "w": 5, "M": 3},
        limits=(Limit("the prior alone", {"weights": adjusted(_without_score)}, _by_the_prior),),
    ),
)
