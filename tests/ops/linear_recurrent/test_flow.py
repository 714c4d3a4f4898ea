"""Flow attention: its oracle; flows are conserved; sources compete."""

import jax
import numpy as np

from attnjax import linear_attend, normalizers
from attnjax.ops.linear_recurrent import flow_attention
from tests.helpers import near, qkv, weights_of
from tests.ops import plain

B, T, N, H = 2, 9, 4, 8


def flow_attention_oracle(q, k, v):
    (B, T, N, _), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        m = n * K // N
        c = plain.sigmoid(q[b, :, n]) @ plain.sigmoid(k[b, :, m]).T  # capacities (T,S)
        sink = (c / c.sum(0)).sum(1)
        source = (c / c.sum(1)[:, None]).sum(0)
        u = S * plain.softmax(np.minimum(source, 1))[:, None] * v[b, :, m]
        for i in range(T):
            taken = sum(c[i, j] / c[i].sum() * u[j] for j in range(S))
            out[b, i, n] = plain.sigmoid(sink[i] * T / S) * taken
    return out


def test_flow_is_conserved_at_sinks_and_sources():
    q, k, v = qkv(B, T, N, H)
    capacity = np.einsum("btnh,bsnh->bnts", jax.nn.sigmoid(q), jax.nn.sigmoid(k))
    incoming, outgoing = capacity.sum(-1, keepdims=True), capacity.sum(-2, keepdims=True)
    allocation = jax.nn.sigmoid((capacity / outgoing).sum(-1, keepdims=True))
    source = np.minimum((capacity / incoming).sum(-2, keepdims=True), 1.0)
    competition = T * jax.nn.softmax(source, axis=-1)
    plain = weights_of(flow_attention, q, k) / allocation / competition
    near(plain.sum(-1), np.ones((B, N, T)))  # what flows into a sink
    near((plain * incoming / outgoing).sum(-2), np.ones((B, N, T)))  # and out of a source
    # without competition and allocation it is linear attention
    linear = lambda q, k, v: linear_attend(
        jax.nn.sigmoid(q), jax.nn.sigmoid(k), v, normalize=normalizers.divide, block=None
    )
    near(plain, weights_of(linear, q, k))


def test_flow_favors_sources_that_few_compete_with():
    q, k, _ = qkv(B, T, N, H)
    weak = k.at[:, 3].set(-3.0)  # a source that little flows out of
    weights = weights_of(flow_attention, q, weak)
    assert (weights[..., 3] < np.delete(weights, 3, axis=-1).min(-1)).all()
