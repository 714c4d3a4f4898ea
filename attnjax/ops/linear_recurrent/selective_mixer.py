"""A Mamba block: a short convolution and a selective state space model, gated by the input.

    u = silu(conv(x W_x) + bias),    dt = softplus(u W_dt + d),    b = u W_b,    c = u W_c
    out = ((SSM(u; dt, -exp(log A), b, c) + D u) * silu(x W_g)) W_o

Along the tokens it is MambaMixer's selective token mixer; along channels, in both directions, its
channel mixer.

Paper: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
arXiv:2312.00752, section 3.4; Behrouz, Santacatterina and Zabih, "MambaMixer: Efficient Selective
State Space Models with Dual Token and Channel Selection", 2024, arXiv:2403.19888.
Limits: a closed gate, W_g = 0, gives zero.
Differs: W_dt is one matrix, which the papers write as a product of two.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import silu, softplus

from attnjax.core.numerics import Affine, aligned, matmul, wide
from attnjax.core.recurrence.documents import Documents
from attnjax.core.scan.convolution import causal_conv
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.linear_recurrent.selective_ssm import SSMState, Tokens, selective_ssm
from attnjax.typing import Array, Float, Int


class Mixer(NamedTuple):
    """Learned: maps between the width W of x and the inner width E."""

    x: Float[Array, "W E"]
    gate: Float[Array, "W E"]
    conv: Float[Array, "C E"]
    conv_bias: Float[Array, " E"]
    dt: Annotated[Affine, "E E"]
    b: Float[Array, "E M"]
    c: Float[Array, "E M"]
    log_a: Float[Array, "E M"]
    skip: Float[Array, " E"]
    out: Float[Array, "E W"]


class State(NamedTuple):
    """The last inputs of the convolution, that of the state space model, and the inputs' ids."""

    before: Float[Array, "B C-1 E"]
    ssm: SSMState
    ids: Int[Array, "B C-1"] | None = None


@on_any_mesh
def selective_token_mixer(
    x: Tokens,
    weights: Mixer,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
) -> Any:
    """Causal; `documents` are ids of packed documents, as `linear_attend` takes them."""
    w = jax.tree.map(wide, weights)
    before, h, ids = (None, None, None) if state is None else state
    every = None if documents is None else _ids(documents, x, ids, len(w.conv) - 1)
    u, before = causal_conv(matmul(x, w.x), w.conv, before, every)
    u = silu(u + aligned(w.conv_bias, u))
    dt, b, c = softplus(w.dt(u)), matmul(u, w.b), matmul(u, w.c)
    read, h = selective_ssm(
        u, dt, -jnp.exp(w.log_a), b, c, documents=documents, state=h, return_state=True
    )
    gate = silu(matmul(x, w.gate))
    out = matmul((read + aligned(w.skip, u) * u) * gate, w.out).astype(x.dtype)
    ids = None
    if every is not None:
        own, ids = every[:, -x.shape[1] :], every[:, x.shape[1] :]
        out = jnp.where(own[..., None] >= 0, out, jnp.zeros((), out.dtype))
    return (out, State(before, h, ids)) if return_state else out


def _ids(documents: Documents, x: Tokens, before: Array | None, n: int) -> Array:
    """The ids (B,n+T) of the n inputs before x, padding if None, and of x."""
    ids = jnp.broadcast_to(documents, x.shape[:2])
    none = jnp.full((len(x), n), -1, ids.dtype)
    return jnp.concatenate([none if before is None else before.astype(ids.dtype), ids], axis=1)


def both_directions(x: Tokens, forward: Mixer, backward: Mixer) -> Tokens:
    """The sum of a mixer and of another one from the last token to the first, at the same time."""
    ahead, back = each_direction(x, x, forward, backward)
    return ahead + back


def each_direction(
    ahead: Tokens, back: Tokens, forward: Mixer, backward: Mixer
) -> tuple[Tokens, Tokens]:
    """What either mixer makes of its tokens, `backward` reading from the last to the first."""
    weights = jax.tree.map(lambda *w: jnp.stack(w), forward, backward)
    ahead, back = jax.vmap(selective_token_mixer)(jnp.stack([ahead, back[:, ::-1]]), weights)
    return ahead, back[:, ::-1]


SIZES = {"E": 8, "C": 3}


def _closed(mixer: Mixer) -> Mixer:
    return mixer._replace(gate=0 * mixer.gate)


def _zeros(x: Tokens) -> Tokens:
    return jnp.zeros_like(x)


OPS = (
    Op(
        selective_token_mixer,
        papers=(330,),
        sizes=SIZES,
        limits=(Limit("a closed gate", {"weights": adjusted(_closed)}, _zeros),),
    ),
)
