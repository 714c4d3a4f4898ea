"""The selective state space model of Mamba, S6: a diagonal recurrence steered by its input.

    h_t = exp(dt_t A) h_{t-1} + dt_t b_t x_t,    y_t = c_t . h_t,    for each channel of x

dt is a number of each token and channel, A <= 0 is learned, b and c are shared by the channels.

Paper: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
arXiv:2312.00752, section 3; the mixer of MambaMixer (arXiv:2403.19888) along both of its axes.
Limits: A = 0 is linear attention with queries c, keys b and values dt x.
Differs: the skip of x past the state, D x_t, belongs to the block around it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.numerics import wide
from attnjax.core.recurrence.linear import linear_attend
from attnjax.core.scan.diagonal import linear_scan
from attnjax.op import Limit, Op, fill, uniform
from attnjax.typing import Array, Float

_CHUNK = 64  # tokens whose states are held at once

Tokens = Float[Array, "B T W"]
Steering = Float[Array, "B T M"]


def selective_ssm(
    x: Tokens,
    dt: Tokens,
    a: Float[Array, "W M"],
    b: Steering,
    c: Steering,
    *,
    state: Float[Array, "B W M"] | None = None,
    return_state: bool = False,
) -> Any:
    """Causal; a parallel scan within chunks, O(T (W + M)) memory; the state is h."""
    (B, T, W), a, size = x.shape, wide(a), min(_CHUNK, x.shape[1])

    def cut(x: Array) -> Array:
        """As (chunks,size,B,...); tokens with dt = 0, which change nothing, fill the last one."""
        x = jnp.pad(wide(x), ((0, 0), (0, -T % size), (0, 0)))
        return jnp.moveaxis(x.reshape(B, -1, size, x.shape[-1]), 0, 2)

    @jax.checkpoint
    def over_chunk(h: Array, tokens: tuple[Array, ...]) -> tuple[Array, Array]:
        x, dt, b, c = tokens
        added = (dt * x)[..., None] * b[:, :, None]
        states = linear_scan(jnp.exp(dt[..., None] * a), added, h)
        return states[-1], jnp.einsum("tBWM,tBM->tBW", states, c, precision="highest")

    h = jnp.zeros((B, W, a.shape[1]), a.dtype) if state is None else state
    h, out = lax.scan(over_chunk, h, tuple(cut(z) for z in (x, dt, b, c)))
    out = jnp.moveaxis(out, 2, 0).reshape(B, -1, W)[:, :T].astype(x.dtype)
    return (out, h) if return_state else out


def _sums(x: Tokens, dt: Tokens, a: Array, b: Steering, c: Steering) -> Tokens:
    one_head = lambda x: x[:, :, None]
    return linear_attend(one_head(c), one_head(b), one_head(dt * x))[:, :, 0]


OPS = (
    Op(
        selective_ssm,
        papers=(330,),
        draw={"dt": uniform(0.05, 1.0), "a": uniform(-2.0, -0.1)},
        limits=(Limit("A = 0 is linear attention", {"a": fill(0.0)}, _sums),),
    ),
)
