"""The mLSTM of xLSTM: gated linear attention whose input gate is an exponential.

    C_t = f_t C_{t-1} + i_t k_t v_t^T,    n_t = f_t n_{t-1} + i_t k_t,    i_t = exp(log_i_t)
    o_t = q_t . C_t / max(|q_t . n_t|, 1),    with k / sqrt(H) for k

C and n are kept as exp(-m_t) C_t and exp(-m_t) n_t, with m_t = max(log f_t + m_{t-1}, log i_t), so
that nothing overflows; then exp(-m_t) stands where the 1 does.

Paper: Beck et al., "xLSTM: Extended Long Short-Term Memory", 2024, arXiv:2405.04517, section 2.3.
Limits: gates of 1 give linear attention, divided by max(|q . sum of k|, 1).
Differs: the output gate and the norm of each head belong to a layer.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import divide, repeat_heads, wide
from attnjax.core.recurrence import linear
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, log_gates, normal
from attnjax.typing import Array, Float, Out, PerQuery, Q, TokenK, TokenV


class State(NamedTuple):
    """exp(-m) C and exp(-m) n, in `linear`, and m (B,N)."""

    linear: linear.State
    m: Float[Array, "B N"]


@on_any_mesh
def mlstm(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_i: PerQuery,
    log_f: PerQuery,
    *,
    documents: linear.Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: linear.Impl = None,
) -> Any:
    """Matrix LSTM; log_i is any number, log_f <= 0, such as log_sigmoid(x)."""
    keys, values = repeat_heads(wide(k), q), repeat_heads(v, q)
    log_i = wide(log_i)
    if state is None:
        before, sums = jnp.zeros_like(log_i[:, 0]), None
    else:
        before, sums = state.m, state.linear
    # Gradients through m cancel, as nothing depends on m; log_decay carries that of log_f.
    of = linear.packed_documents(documents, q, sums, impl)
    m, log_decay, last_m = features.running_max(log_i, wide(log_f), before, documents=of, impl=impl)
    one = jnp.exp(-jnp.maximum(m, -80.0))[..., None]  # finite; what it divides is as good as zero

    def normalize(values: Array, denominator: Array) -> Array:
        return divide(values, jnp.maximum(jnp.abs(denominator), one))

    out, last = linear.linear_attend(
        q,
        keys * jnp.exp(log_i - m)[..., None] / math.sqrt(q.shape[3]),
        values,
        log_decay=log_decay,
        normalize=normalize,
        documents=documents,
        state=sums,
        return_state=True,
        impl=impl,
    )
    return (out, State(last, last_m)) if return_state else out


def _linear(q: Q, k: TokenK, v: TokenV) -> Out:
    def normalize(values: Array, denominator: Array) -> Array:
        return values / jnp.maximum(jnp.abs(denominator), 1.0)

    return linear.linear_attend(q / math.sqrt(q.shape[3]), k, v, normalize=normalize)


OPS = (
    Op(
        mlstm,
        draw={"log_i": normal(2.0), "log_f": log_gates},
        limits=(
            Limit(
                "gates of 1 give linear attention, divided by max(|q . sum of k|, 1)",
                {"log_i": fill(0.0), "log_f": fill(0.0)},
                _linear,
            ),
        ),
    ),
)
