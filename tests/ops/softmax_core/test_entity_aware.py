"""Words and entities: the oracle, the four matrices of the paper, and equal ones."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import entity_aware_attention, multi_head_attention
from tests.helpers import draws, exact, near, qkv
from tests.ops.plain import blend, kv, softmax, weights

B, T, N, H = 2, 9, 4, 8


def entity_aware_attention_oracle(q, k, v, q_entity, entity, allowed=None):
    def score(b, n, i, j):
        asked = q_entity[b, i, n] if entity[b, j] else q[b, i, n]
        return asked @ k[b, j, kv(q, k, n)] / np.sqrt(q.shape[-1])

    return blend(weights(q, k, allowed, logit=score), v)


def test_four_matrices_one_for_each_pair_of_types():
    """Words first, then entities, one head: blocks of scores side by side under one softmax."""
    W, words = 6, 5
    x, w2w, w2e, e2w, e2e, w_k, w_v = draws((B, T, W), *[(W, H)] * 6)
    entity = jnp.broadcast_to(jnp.arange(T) >= words, (B, T)).astype(x.dtype)
    mine = entity[..., None] > 0
    head = lambda y: y[:, :, None]
    got = entity_aware_attention(
        head(jnp.where(mine, x @ e2w, x @ w2w)),
        head(x @ w_k),
        head(x @ w_v),
        head(jnp.where(mine, x @ e2e, x @ w2e)),
        entity,
    )
    x, w2w, w2e, e2w, e2e, w_k, w_v = exact((x, w2w, w2e, e2w, e2e, w_k, w_v))
    for b in range(B):
        word, other = x[b, :words], x[b, words:]
        top = np.hstack([word @ w2w @ (word @ w_k).T, word @ w2e @ (other @ w_k).T])
        low = np.hstack([other @ e2w @ (word @ w_k).T, other @ e2e @ (other @ w_k).T])
        rows = np.vstack([top, low]) / np.sqrt(H)
        near(got[b, :, 0], np.stack([softmax(r) for r in rows]) @ x[b] @ w_v)


def test_equal_queries_are_softmax_attention():
    q, k, v = qkv(B, T, N, H)
    entity = (jnp.arange(B * T).reshape(B, T) % 3 == 0).astype(q.dtype)
    near(entity_aware_attention(q, k, v, q, entity), multi_head_attention(q, k, v))
