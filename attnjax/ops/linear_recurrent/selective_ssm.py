"""The selective state space model of Mamba, S6: a diagonal recurrence steered by its input.

    h_t = exp(dt_t A) h_{t-1} + dt_t b_t x_t,    y_t = c_t . h_t,    for each channel of x

dt is a number of each token and channel, A <= 0 is learned, b and c are shared by the channels.

Paper: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
arXiv:2312.00752, section 3; the mixer of MambaMixer (arXiv:2403.19888) along both of its axes.
Limits: A = 0 is linear attention with queries c, keys b and values dt x.
Differs: the skip of x past the state, D x_t, belongs to the block around it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from attnjax.core.dispatch import compiled
from attnjax.core.numerics import einsum, wide
from attnjax.core.recurrence.documents import Documents, packed
from attnjax.core.recurrence.linear import linear_attend
from attnjax.core.scan.diagonal import scan_diagonal
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, uniform
from attnjax.typing import Array, Float, Int

_CHUNK = 64  # tokens whose states are held at once

Tokens = Float[Array, "B T W"]
Steering = Float[Array, "B T M"]


class SSMState(NamedTuple):
    """h after the last token, and where there are documents the id of its own."""

    h: Float[Array, "B W M"]
    document: Int[Array, " B"] | None = None


@on_any_mesh
@compiled("return_state")
def selective_ssm(
    x: Tokens,
    dt: Tokens,
    a: Float[Array, "W M"],
    b: Steering,
    c: Steering,
    *,
    documents: Documents | None = None,
    state: SSMState | None = None,
    return_state: bool = False,
) -> Any:
    """Causal; a parallel scan within chunks, O(T (W + M)) memory.

    `documents` are ids of packed documents, as `linear_attend` takes them.
    """
    a = wide(a)
    (B, T, W), starts, document = x.shape, jnp.zeros((len(x), 1, 1), a.dtype), None
    of = packed(documents, (B, T), None if state is None else state.document)
    if of is not None:
        starts, document = of.starts[..., None].astype(a.dtype), of.last
        x, dt, c = map(of.without_padding, (x, dt, c))  # a step of zero changes nothing

    def terms(tokens: tuple[Array, ...]) -> tuple[Array, Array]:
        x, dt, b, _, starts = tokens
        decay = jnp.exp(dt[..., None] * a[None, None])
        return decay * (1 - starts)[..., None], (dt * x)[..., None] * b[:, :, None]

    def read(states: Array, tokens: tuple[Array, ...]) -> Array:
        return einsum("BtWM,BtM->BtW", states, tokens[3])

    start = jnp.zeros((B, W, a.shape[1]), a.dtype) if state is None else state.h
    tokens = (*map(wide, (x, dt, b, c)), jnp.broadcast_to(starts, (B, T, 1)))
    out, last = scan_diagonal(terms, read, tokens, start, chunk=min(_CHUNK, T))
    out = out.astype(x.dtype)
    return (out, SSMState(last, document)) if return_state else out


def _linear_attention(x: Tokens, dt: Tokens, b: Steering, c: Steering) -> Tokens:
    q, k, v = (one_head[:, :, None] for one_head in (c, b, dt * x))
    return linear_attend(q, k, v)[:, :, 0]


OPS = (
    Op(
        selective_ssm,
        papers=(330,),
        draw={"dt": uniform(0.05, 1.0), "a": uniform(-2.0, -0.1)},
        limits=(Limit("A = 0 is linear attention", {"a": fill(0.0)}, _linear_attention),),
    ),
)
