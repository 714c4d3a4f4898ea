"""Heads that look far only where it pays: each query asks first how much mass is near.

    near   = exp of the sum of the scores s_ij over the sinks and the last `window` keys, exactly
    far    = |B| exp(q_i . mu / sqrt(H) + q_i^T Sigma q_i / (2 H)),    B the keys between them
    out_i  = attention over the near keys where near / (near + far) >= tau, else over all

`far` is the sum over B of keys that are normal with mean mu and covariance Sigma, those of the
prompt's keys, or of another text's once and for all.

Paper: Donhauser et al., "Unveiling Simplicities of Attention: Adaptive Long-Context Head
Identification", 2025, arXiv:2502.09647.
Limits: tau > 1 is causal attention, tau = 0 `sink_window_attention`.
Differs: no code of the authors was found; moments of each key head are our choice.  Both branches
are computed here, so nothing is saved: what would be is the share of queries that stay near.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.normalizers import log_sum
from attnjax.core.numerics import einsum, finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.kv_decode.streaming_llm import sink_window_attention
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, K, Out, PerQuery, Q, TokenK, TokenV


class KeyMoments(NamedTuple):
    """Of the keys as attention sees them, after their rotary positions."""

    mean: Float[Array, "K H"]
    covariance: Float[Array, "K H H"]


def key_moments(k: K) -> KeyMoments:
    """Of the keys of all examples, wide; jax.vmap gives each example its own."""
    mean = wide(k).mean((0, 1))
    centered = wide(k) - mean[None, None]
    total = einsum("BSKH,BSKh->KHh", centered, centered)
    return KeyMoments(mean, total / (k.shape[0] * k.shape[1]))


@of_whole_text
@on_any_mesh
def adaptive_head_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    moments: KeyMoments,
    *,
    sinks: int = 16,
    window: int = 1024,
    tau: float = 0.6,
    impl: Impl = None,
) -> Out:
    """Causal attention, of each head and query over near keys or over all; see `near_share`."""
    share = near_share(q, k, moments, sinks=sinks, window=window, impl=impl)
    near = sink_window_attention(q, k, v, sinks=sinks, window=window, impl=impl)
    every = attend(q, k, v, mask=masks.causal, impl=impl)
    return jnp.where((share >= tau)[..., None], near, every)


@on_any_mesh
def near_share(
    q: Q, k: TokenK, moments: KeyMoments, *, sinks: int, window: int, impl: Impl = None
) -> PerQuery:
    """How much of the mass of each query is near, estimated; 1 where all keys are."""
    at, H = np.arange(q.shape[1]), q.shape[-1]
    kept = masks.causal & (masks.window(window - 1) | masks.sinks(sinks))
    state = attend_state(q, k, jnp.zeros_like(k[..., :1]), mask=kept, impl=impl)
    near = jnp.swapaxes(log_sum(state)[..., 0], 1, 2)

    mean = repeat_heads(moments.mean[None, None], q)[0, 0]
    covariance = repeat_heads(moments.covariance[None, None], q)[0, 0]
    rows = finite(q)
    height = einsum("BTNH,NH->BTN", rows, mean) / np.sqrt(H).astype(rows.dtype)
    spread = einsum("BTNH,NHh,BTNh->BTN", rows, covariance, rows) / (2 * H)
    count = np.maximum(at + 1 - sinks - window, 0)[None, :, None]
    far = jnp.asarray(np.log(np.maximum(count, 1)), height.dtype) + height + spread
    return jnp.where(count > 0, jax.nn.sigmoid(near - far), 1.0)


OPS = (
    Op(
        adaptive_head_attention,
        papers=(256,),
        reads="past",
        draw={"sinks": 1, "window": 2, "tau": 0.5},
        limits=(
            Limit("tau > 1 is causal attention", {"tau": 2.0}, causal_attention),
            Limit("tau = 0 is local", {"tau": 0.0}, sink_window_attention),
        ),
    ),
)
