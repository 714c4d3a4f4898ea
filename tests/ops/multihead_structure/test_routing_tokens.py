"""Routing by attention: its oracle, and tokens that are all alike."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.multihead_structure import attention_aware_routing, route
from tests.helpers import draws, near
from tests.ops.plain import softmax, weights


def attention_aware_routing_oracle(q, k, logits, allowed=None):
    w = weights(q, k, allowed)
    (B, N, T, S), out = w.shape, np.zeros((*q.shape[:2], logits.shape[-1]))
    for b, n, i, j in np.ndindex(B, N, T, S):
        if w[b, n, i, j]:
            out[b, i] += w[b, n, i, j] * softmax(logits[b, j]) / N
    return out


def test_where_all_keys_weigh_the_same_all_tokens_choose_the_same():
    q, k, logits = draws((2, 6, 2, 4), (2, 6, 2, 4), (2, 6, 5))
    r = attention_aware_routing(q, 0 * k, logits)
    near(r.sum(-1), np.ones((2, 6)))
    near(r, jnp.broadcast_to(r[:, :1], r.shape))
    assert (route(jnp.log(r), 2).chosen == route(jnp.log(r), 2).chosen[:, :1]).all()
