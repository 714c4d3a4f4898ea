"""ReGLA: gated linear attention with a bounded feature map, a refined gate, and a normed output.

    S_t = diag(g'_t) S_{t-1} + phi(k_t) v_t^T,    o_t = rms(phi(q_t) . S_t)
    phi(q_t)_i = exp(q_ti - max_j q_tj),    phi(k_t)_i = exp(k_ti - max_sj k_sj)
    g' = (1 - r) g^2 + r (1 - (1 - g)^2)

with g = sigmoid(gate), r = sigmoid(refine) and rms(x) = x / sqrt(mean(x^2)).  Where g is close to 0
or 1, and a sigmoid learns little, r moves it: to twice the slope, or to none.

Paper: Lu, Kobyzev, Rezagholizadeh, Chen and Langlais, "ReGLA: Refining Gated Linear Attention",
2025, arXiv:2502.01578.
Limits: refine = 0 leaves the gate as it is; g' = 1 is linear attention of phi(q), phi(k), normed.
Differs: no code of the authors is known; phi and the gate are of an account of the paper. phi has
no constant scale, which the norm would take out again, and the norm no eps; its learned gain
belongs to a layer. The norm takes out the maximum over all keys, too, so that no token waits for a
later one: a running maximum stands in the state.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid

from attnjax.core import features
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend, packed_documents
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, normal
from attnjax.ops.linear_recurrent.gla import gla
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV

PerChannel = Float[Array, "B T N H"]


class ReglaState(NamedTuple):
    """exp(-reference) times S, and for each channel the largest key so far, as much as it faded."""

    linear: State
    reference: Float[Array, "B N H"]


def safe_exp(x: Array) -> Array:
    """exp(x - max(x)) over the features of a token: in (0, 1], the largest exactly 1."""
    # By its place: a maximum found by value divides by the number of equals, and a compiler that
    # computes x twice may find none.
    is_largest = jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype)
    return jnp.exp(x - jnp.sum(x * is_largest, axis=-1, keepdims=True))


def log_refined_gate(gate: Array, refine: Array) -> Array:
    """log g' from the numbers before the sigmoids, finite and exact where g or r is nearly 0.

    g' = g (g + 2 r (1 - g)): a product of a gate and of what r makes of it.
    """
    twice = math.log(2.0) + log_sigmoid(refine) + log_sigmoid(-gate)
    log_g = log_sigmoid(gate)
    return jnp.minimum(log_g + jnp.logaddexp(log_g, twice), 0.0)


@on_any_mesh
def regla(
    q: Q,
    k: TokenK,
    v: TokenV,
    gate: PerChannel,
    refine: PerChannel,
    *,
    documents: Documents | None = None,
    state: ReglaState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Refined gated linear attention; `gate` and `refine` are numbers before their sigmoids."""
    before, memory = (None, None) if state is None else (state.reference, state.linear)
    keys = repeat_heads(wide(k), q)
    log_gate = log_refined_gate(wide(gate), wide(refine))
    joined = lambda x: x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
    flat = lambda x: joined(lax.stop_gradient(x))
    of = packed_documents(documents, q, memory, impl)
    m, fade, last_m = features.running_max(
        flat(keys),
        flat(log_gate),
        None if before is None else flat(before),
        documents=of,
        impl=impl,
    )
    reference, fade = m.reshape(keys.shape), fade.reshape(keys.shape)
    out, last = gla(
        safe_exp(wide(q) + reference),
        jnp.exp(keys - reference),
        repeat_heads(wide(v), q),
        # the gradient is the gate's: no result depends on the reference
        fade + (log_gate - lax.stop_gradient(log_gate)),
        documents=documents,
        state=memory,
        return_state=True,
        impl=impl,
    )
    out = _normed(out).astype(v.dtype)
    return (out, ReglaState(last, last_m.reshape(keys[:, 0].shape))) if return_state else out


def _normed(x: Out) -> Out:
    """x over its root mean square; zero stays zero."""
    return math.sqrt(x.shape[-1]) * features.cosine(x)


def _normed_linear(q: Q, k: TokenK, v: TokenV) -> Out:
    return _normed(linear_attend(safe_exp(q), jnp.exp(k - k.max()), v))


OPS = (
    Op(
        regla,
        papers=(287,),
        draw={"gate": normal(2.0)},
        limits=(
            Limit(
                "g' = 1 is linear attention of phi(q), phi(k), normed",
                {"gate": fill(100.0)},
                _normed_linear,
            ),
        ),
    ),
)
