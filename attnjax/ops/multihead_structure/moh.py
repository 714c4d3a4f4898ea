"""Mixture-of-heads attention: each token chooses which heads it hears, and how loud.

    a = 2 softmax(x W_mix)                                          (2,)
    shared heads    g_n = a_0 S softmax(x W_s)_n                    S of them, always on
    routed heads    p = softmax(x W_r),  g_n = a_1 k p_n / sum of the k largest p, 0 for the others
    out_i,n = g_i,n sum_j softmax_j(q_i,n . k_j,n / sqrt(H)) v_j,n
    loss    E sum_n mean(p_n) mean(n is among the k largest),       over all tokens, E routed heads

The factors 2, S and k make every gate 1 where W = 0 and k = E. All keys and values are computed.

As a layer: `nn.Attention(..., gate=lambda x: moh_gates(x, w_s, w_r, w_mix, top_k=k))`.
A soft mixture of attention experts (BAM) is the same op: heads of E experts side by side, their own
keys and values or (K < N) those of all, gates jnp.repeat(softmax(x W), N // E, axis=-1), and the
experts' output projections one below the other.

Paper: Jin et al., "MoH: Multi-Head Attention as Mixture-of-Head Attention", 2024, arXiv:2410.11842;
code: SkyworkAI/MoH. Zhang et al., "BAM! Just Like That: Simple and Efficient Parameter Upcycling
for Mixture of Experts", 2024, arXiv:2408.08274, sections 3.4 and 4.
Limits: W = 0 and k = E are multi-head attention; gates of one, too.
Differs: without routed heads, or without shared ones, there is no a, as in the code. The code's DiT
wants two shared heads at least, its LLaMA as many shared heads as routed ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core import masks
from attnjax.core.numerics import divide, matmul, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Bool, Float, K, Out, PerQuery, Q, V

Logits = Float[Array, "B T E"]


class Routing(NamedTuple):
    """What tokens choose: shares of experts, 0 for those not chosen, which sum to one."""

    shares: Float[Array, "... E"]
    chosen: Bool[Array, "... E"]
    probabilities: Float[Array, "... E"]


def route(logits: Float[Array, "... E"], top_k: int) -> Routing:
    """The `top_k` likeliest of E experts for each token, and their probabilities' shares; wide.

    Of equally likely ones the first. Raises ValueError for a top_k that is not from 1 to E.
    """
    E = logits.shape[-1]
    if not 1 <= top_k <= E:
        raise ValueError(f"top_k: {top_k}; expected 1 to E = {E} routed experts")
    p = jax.nn.softmax(wide(logits), axis=-1)
    best = lax.top_k(lax.stop_gradient(p), top_k)[1]
    chosen = jax.nn.one_hot(best, E, dtype=bool).any(-2)
    kept = jnp.where(chosen, p, 0.0)
    return Routing(divide(kept, kept.sum(-1, keepdims=True)), chosen, p)


@on_any_mesh
def moh_gates(
    x: Float[Array, "B T W"],
    shared: Float[Array, "W S"],
    routed: Float[Array, "W E"],
    mix: Float[Array, "W 2"],
    *,
    top_k: int,
) -> Float[Array, "B T N"]:
    """Gates of S shared, then E routed heads, N = S + E, for each token; in x's dtype.

    One of `shared` and `routed` may have no columns; `mix` has then no say.
    """
    S, E = shared.shape[1], routed.shape[1]
    parts = []
    if S:
        parts.append(S * jax.nn.softmax(matmul(x, shared), axis=-1))
    if E:
        parts.append(top_k * route(matmul(x, routed), top_k).shares)
    if S and E:
        a = 2 * jax.nn.softmax(matmul(x, mix), axis=-1)
        parts = [a[..., :1] * parts[0], a[..., 1:] * parts[1]]
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


@on_any_mesh
def moh_norm_gates(
    queries: Float[Array, "B T N H"], *, shared: int, top_k: int
) -> Float[Array, "B T N"]:
    """Gates without weights: 1 for the first `shared` heads and the top_k longest of the others.

    Queries are those before rotary positions; for models trained without gates (MoH-LLaMA).
    """
    length = jnp.sqrt(jnp.sum(jnp.square(wide(queries[:, :, shared:])), axis=-1))
    chosen = route(length, top_k).chosen
    always = jnp.ones((*queries.shape[:2], shared), bool)
    return jnp.concatenate([always, chosen], axis=-1).astype(queries.dtype)


@on_any_mesh
def moh_balance_loss(logits: Logits, *, top_k: int) -> Float[Array, ""]:
    """The loss of one layer: k where experts are equally busy, up to E where k always are.

    The paper adds 0.01 times its mean over layers.
    """
    routing = route(logits, top_k)
    tokens = tuple(range(logits.ndim - 1))
    busy = routing.chosen.mean(tokens, dtype=routing.probabilities.dtype)
    return logits.shape[-1] * jnp.sum(routing.probabilities.mean(tokens) * busy)


@on_any_mesh
def mixture_of_heads(
    q: Q,
    k: K,
    v: V,
    gates: PerQuery,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention times `gates`: a head with a gate of zero says nothing."""
    out = wide(attend(q, k, v, mask=mask, impl=impl))
    gates = wide(gates)[..., None]
    unknown = jnp.isnan(gates)
    gated = out * jnp.where(unknown, 0.0, gates)
    # a NaN gate spoils its row, but not in padding, where the row is zero
    return jnp.where(unknown & (out != 0), jnp.nan, gated).astype(q.dtype)


OPS = (
    Op(
        mixture_of_heads,
        papers=(0, 36),
        limits=(Limit("gates of one", {"gates": fill(1.0)}, multi_head_attention),),
    ),
    Op(
        moh_gates,
        papers=(0,),
        sizes={"S": 2, "E": 5, "N": 7},
        draw={"top_k": 3},
        limits=(
            Limit(
                "routers of zero that choose all heads open all gates",
                {"shared": fill(0.0), "routed": fill(0.0), "mix": fill(0.0), "top_k": 5},
                lambda x: jnp.ones((*x.shape[:2], 7)),
            ),
        ),
    ),
    Op(moh_norm_gates, papers=(0,), sizes={"N": 7}, draw={"shared": 2, "top_k": 3}),
    Op(
        moh_balance_loss,
        papers=(0,),
        sizes={"E": 5},
        draw={"top_k": 2},
        limits=(
            Limit(
                "equal probabilities: k",
                {"logits": fill(0.0)},
                lambda logits: 2.0 + 0.0 * logits.sum(),
            ),
        ),
    ),
)
