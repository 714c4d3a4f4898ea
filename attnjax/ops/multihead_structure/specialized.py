"""SHRP: heads are experts behind a shared expander; a router uses one, and few of them stay.

    o_n   = W_n sum_j softmax_j(q_n . k_j / sqrt(H)) v_j        of head n, in the model's width
    out_i = sum_n g_in (o_in + U' gelu(U o_in)),    the expander U, U' shared by all heads
    training     g = p_n for the likeliest head n of p = softmax(router), 0 for the others
    deployment   the heads that were the likeliest most often, with gates of one, no router

Paper: "SHRP: Specialized Head Routing and Pruning for Efficient Encoder Compression", 2025,
arXiv:2512.20635, as its abstract has it.
Limits: gates of one and an expander of zeros are multi-head attention with its output projection.
Differs: neither the text nor code was at hand: gates by token, their weight p and the expander's
residual are our reading.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import einsum, finite, matmul
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted, fill
from attnjax.ops.multihead_structure.moh import route
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Int, K, PerQuery, Q, V


class Expander(NamedTuple):
    """What all heads go through: W -> E -> W, without biases, so that what sees nothing is zero."""

    up: Float[Array, "W E"]
    down: Float[Array, "E W"]


@on_any_mesh
def specialized_heads(
    q: Q,
    k: K,
    v: V,
    gates: PerQuery,
    out: Float[Array, "N D W"],
    expander: Expander,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Float[Array, "B T W"]:
    """The sum of what heads say, each through the expander, times their gates.

    A pruned layer is the same of the arrays of the heads that stay, with gates of one.
    """
    read = attend(q, k, v, mask=mask, impl=impl)
    said = einsum("BTND,NDW->BTNW", read, out)
    hidden = jax.nn.gelu(matmul(said, expander.up), approximate=False)
    expanded = said + matmul(hidden, expander.down)
    return einsum("BTN,BTNW->BTW", finite(gates), expanded).astype(q.dtype)


@on_any_mesh
def likeliest_gates(logits: PerQuery) -> PerQuery:
    """The probability of the likeliest head, of equally likely ones the first, 0 for the others."""
    routing = route(logits, 1)
    return jnp.where(routing.chosen, routing.probabilities, 0.0).astype(logits.dtype)


@on_any_mesh
def head_usage(logits: PerQuery) -> Float[Array, " N"]:
    """How often each head is the likeliest, a share of all tokens; wide."""
    routing = route(logits, 1)
    return routing.chosen.mean((0, 1), dtype=routing.probabilities.dtype)


def most_used(usage: Float[Array, " N"], count: int) -> Int[Array, " X"]:
    """The `count` heads to keep, in their order."""
    return jnp.sort(jax.lax.top_k(usage, count)[1])


def _one_by_one(q: Q, k: K, v: V, out: Float[Array, "N D W"]) -> Array:
    return einsum("BTND,NDW->BTW", multi_head_attention(q, k, v), out)


_silent = adjusted(lambda expander: expander._replace(down=0.0 * expander.down))

OPS = (
    Op(
        specialized_heads,
        papers=(346,),
        sizes={"E": 5},
        limits=(
            Limit(
                "gates of one, an expander of zeros: multi-head attention",
                {"gates": fill(1.0), "expander": _silent},
                _one_by_one,
            ),
        ),
    ),
    Op(likeliest_gates, papers=(346,)),
    Op(head_usage, papers=(346,)),
)
