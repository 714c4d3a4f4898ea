"""Flow attention: linear attention whose sources compete and whose sinks get limited flow.

    incoming_i = phi(q_i) . sum_j phi(k_j),    sink_i = phi(q_i) . sum_j phi(k_j) / outgoing_j
    outgoing_j = phi(k_j) . sum_i phi(q_i),    source_j = phi(k_j) . sum_i phi(q_i) / incoming_i
    u_j = S softmax_j(min(source_j, 1)) v_j
    o_i = sigmoid(sink_i T / S) phi(q_i) / incoming_i . sum_j phi(k_j) u_j^T,    phi = sigmoid

Paper: Wu, Wu, Xu, Wang and Long, "Flowformer: Linearizing Transformers with Conservation Flows",
2022, arXiv:2202.06258; the clamp of the sources and the factor T / S are its code's.
Limits: q = k = 0 gives the mean of the values times sigmoid(1): all flows are equal.
"""

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from attnjax.core.numerics import divide_stably, einsum, repeat_heads, wide
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_of_all
from attnjax.typing import Array, Float, K, Out, Q, V


@of_whole_text
@on_any_mesh
def flow_attention(q: Q, k: K, v: V, *, impl: Impl = None) -> Out:
    """Over all tokens, in both directions."""
    T, S = q.shape[1], k.shape[1]
    sinks = sigmoid(wide(q))
    sources = repeat_heads(sigmoid(wide(k)), q)  # a source's flow differs by query head
    sinks_in = divide_stably(sinks, _flow(sinks, sources))
    sources_out = divide_stably(sources, _flow(sources, sinks))
    sink = _flow(sinks, sources_out)
    source = _flow(sources, sinks_in)
    competition = S * jax.nn.softmax(jnp.minimum(source, 1.0), axis=1)
    u = competition * repeat_heads(wide(v), q)
    out = linear_attend(sinks_in, sources, u, block=None, impl=impl)
    return (sigmoid(sink * (T / S)) * out).astype(v.dtype)


def _flow(x: Float[Array, "B T N H"], y: Float[Array, "B S N H"]) -> Float[Array, "B T N 1"]:
    """x . the sum of y over all tokens."""
    return einsum("BTNH,BNH->BTN", x, y.sum(axis=1))[..., None]


def _uniform(q: Q, v: V) -> Out:
    return sigmoid(1.0) * mean_of_all(q, v)


OPS = (
    Op(
        flow_attention,
        papers=(322,),
        reads="all",
        limits=(
            Limit(
                "q = k = 0 gives the mean of the values times sigmoid(1)",
                {"q": fill(0.0), "k": fill(0.0)},
                _uniform,
            ),
        ),
    ),
)
