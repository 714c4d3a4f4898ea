"""ReGLA: gated linear attention with a bounded feature map, a refined gate, and a normed output.

    S_t = diag(g'_t) S_{t-1} + phi(k_t) v_t^T,    o_t = rms(phi(q_t) . S_t)
    phi(x)_i = exp(x_i - max_j x_j),    g' = (1 - r) g^2 + r (1 - (1 - g)^2)

with g = sigmoid(gate), r = sigmoid(refine) and rms(x) = x / sqrt(mean(x^2)).  Where g is close to 0
or 1, and a sigmoid learns little, r moves it: to twice the slope, or to none.

Paper: Lu, Kobyzev, Rezagholizadeh, Chen and Langlais, "ReGLA: Refining Gated Linear Attention",
2025, arXiv:2502.01578.
Limits: refine = 0 leaves the gate as it is; g' = 1 is linear attention of phi(q), phi(k), normed.
Differs: phi has no constant scale, which the norm would take out again; the norm's learned gain
belongs to a layer; every key takes off its own maximum, so that no token waits for a later one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from attnjax.core.numerics import rms_norm, wide
from attnjax.core.recurrence.linear import Impl, State, linear_attend
from attnjax.op import Limit, Op, fill, normal
from attnjax.ops.linear_recurrent.gla import gla
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV

PerChannel = Float[Array, "B T N H"]


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


def regla(
    q: Q,
    k: TokenK,
    v: TokenV,
    gate: PerChannel,
    refine: PerChannel,
    *,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Refined gated linear attention; `gate` and `refine` are numbers before their sigmoids."""
    out, last = gla(
        safe_exp(wide(q)),
        safe_exp(wide(k)),
        wide(v),
        log_refined_gate(wide(gate), wide(refine)),
        state=state,
        return_state=True,
        impl=impl,
    )
    out = rms_norm(out).astype(v.dtype)
    return (out, last) if return_state else out


def _normed_linear(q: Q, k: TokenK, v: TokenV) -> Out:
    return rms_norm(linear_attend(safe_exp(q), safe_exp(k), v))


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
