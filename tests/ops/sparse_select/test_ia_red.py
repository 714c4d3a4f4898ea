"""IA-RED^2: its oracles, gathered tokens, the first token, groups that only shrink."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import kept_tokens, reduced_attention, token_importance
from tests.helpers import draws, near, qkv, run
from tests.ops.plain import blend, sigmoid, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def token_importance_oracle(queries, policy):
    (B, T, N, H), out = queries.shape, np.zeros(queries.shape[:2])
    for b, t in np.ndindex(B, T):
        scores = [queries[b, t, n] @ policy[b, n] / np.sqrt(H) for n in range(N)]
        out[b, t] = np.mean([sigmoid(x) for x in scores])
    return out


def reduced_attention_oracle(q, k, v, importance, threshold=0.5, leading=1):
    stay = (importance > threshold) | (np.arange(q.shape[1]) < leading)
    return blend(weights(q, k, stay[:, None, :, None] & stay[:, None, None]), v)


def test_it_is_attention_of_the_tokens_that_stay():
    q, k, v = qkv(1, T, N, H, K=K)
    importance = jnp.where(jnp.arange(T) % 3 == 0, 0.2, 0.7)[None].at[0, 0].set(0.0)
    stay = np.array([0, *(t for t in range(T) if t % 3)])
    got = run(reduced_attention, q, k, v, importance)
    near(got[:, stay], run(multi_head_attention, q[:, stay], k[:, stay], v[:, stay]))
    assert not np.any(np.delete(got, stay, axis=1))


def test_who_left_a_group_stays_away_and_the_first_never_leaves():
    queries, policy, others = draws((B, T, N, H), (B, N, H), (B, T, N, H), scale=2.0)
    first = run(token_importance, queries, policy)
    kept = kept_tokens(first, 0.5, 1)
    again = kept_tokens(run(token_importance, others, policy) * kept, 0.5, 1)
    assert (again <= kept).all() and again[:, 0].all() and again.sum() < kept.sum() < kept.size
