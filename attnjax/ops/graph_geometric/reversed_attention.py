"""Reversed attention: each token chooses its parents and sends them its value, by one head.

    A_ij = softmax_j(q_i . k_j / sqrt(H)) of each head,    P_i = softmax over heads of g_i / 0.1
    out_j = sum_i A_ij P_i m_i v_i,    m in (0, 1), a message that fades from layer to layer

so that a token of message 0 is a leaf that nobody hears, and all children's weights, over heads and
parents, sum to m_i. The map is transposed, not formed: parents are queries, children keys with
their log sum taken off, and nothing is normalized again.

Paper: Ding, Shen, Fan, Chen, Chen, Luo, Tenenbaum and Gan, "Visual Dependency Transformers:
Dependency Tree Emerges from Reversed Attention", 2023, arXiv:2304.03282.
Limits: m = 0 gives zero; q = 0 gives every token the mean of all messages.
Differs: the authors' repository has no code; a third party's was at hand. m_i is a sigmoid of a
small network times that of the layer before, g a linear map, both without a bias there; the output
map, the features times m at the end, and what is cut - a share of .16 of the tokens of smallest
`received` after layers 2, 5, 8 and 11 - belong to a layer.
"""

import jax
import jax.numpy as jnp

from attnjax.core import mods, normalizers
from attnjax.core.numerics import einsum, finite, repeat_heads, wide
from attnjax.core.pairwise.attend import attend, attend_state, attention_weights
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, uniform
from attnjax.typing import Array, Float, Out, PerQuery, Q, TokenK, TokenV

Message = Float[Array, "B T"]


@on_any_mesh
def reversed_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    selector: PerQuery,
    message: Message,
    *,
    temperature: float = 0.1,
) -> Out:
    """What the parents get: q and v of children, k of parents; `selector` are g, before softmax."""
    sent = _share(selector, message, temperature)[..., None] * wide(repeat_heads(v, q))
    state = attend_state(wide(q), wide(k), jnp.zeros_like(wide(k)[..., :1]))
    log_sum = jnp.swapaxes(normalizers.log_sum(state)[..., 0], 1, 2)
    below = mods.mod(lambda score, total: score - total, key=finite(log_sum))
    out = attend(repeat_heads(wide(k), q), wide(q), sent, mods=(below,), normalizer=normalizers.exp)
    return out.astype(q.dtype)


def _share(selector: PerQuery, message: Message, temperature: float) -> PerQuery:
    """P_i m_i of each head."""
    heads = jax.nn.softmax(wide(selector) / temperature, axis=-1)
    return heads * wide(message)[..., None]


def dependencies(
    q: Q, k: TokenK, selector: PerQuery, message: Message, *, temperature: float = 0.1
) -> Float[Array, "B T T"]:
    """(B,child,parent): the weights of all heads together; a child's parent is its largest."""
    weights = attention_weights(wide(q), wide(k))
    return einsum("BNTS,BTN->BTS", weights, _share(selector, message, temperature))


def received(dependency: Float[Array, "B T S"]) -> Float[Array, "B S"]:
    """What each token gets of its children: tokens of little are cut."""
    return jnp.sum(dependency, axis=1)


def _mean_of_messages(v: TokenV, q: Q, selector: PerQuery, message: Message) -> Out:
    sent = _share(selector, message, 0.1)[..., None] * repeat_heads(v, q)
    return jnp.broadcast_to(jnp.mean(sent, axis=1, keepdims=True), sent.shape)


def _zeros(q: Q, v: TokenV) -> Out:
    return jnp.zeros((*q.shape[:-1], v.shape[-1]))


OPS = (
    Op(
        reversed_attention,
        papers=(395,),
        reads="all",
        draw={"message": uniform(0.1, 0.9), "temperature": 0.5},
        limits=(
            Limit("m = 0 gives zero", {"message": fill(0.0)}, _zeros),
            Limit(
                "q = 0 gives every token the mean of all messages",
                {"q": fill(0.0), "temperature": 0.1},
                _mean_of_messages,
            ),
        ),
    ),
)
