"""CoPE: its oracle, and a gate that counts one kind of token."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.position import contextual_position_attention
from tests.helpers import draw, near
from tests.ops.plain import blend, causal, kv, weights


def contextual_position_attention_oracle(q, k, v, table, block):
    T, H, last = q.shape[1], q.shape[-1], table.shape[1] - 1

    def score(b, n, i, j):
        g = kv(q, k, n)
        s = lambda l: q[b, i, n] @ k[b, l, g] / np.sqrt(H)
        place = min(sum(1 / (1 + np.exp(-s(l))) for l in range(j, i + 1)), last)
        low, high = int(np.floor(place)), int(np.ceil(place))
        e = table[n, high] * (place - low) + table[n, low] * (1 - (place - low))
        return s(j) + q[b, i, n] @ e

    return blend(weights(q, k, causal(T, T), logit=score), v)


def test_only_tokens_with_open_gates_are_counted():
    """The query after three separators finds the second of them, whatever is between."""
    T, H, P = 12, 3, 5
    separators = (1, 6, 9)
    is_one = np.isin(np.arange(T), separators)
    k = jnp.zeros((1, T, 1, H)).at[0, :, 0, 0].set(np.where(is_one, 60.0, -60.0))
    q = jnp.zeros((1, T, 1, H)).at[..., 0].set(1.0).at[..., 1].set(1.0)
    table = jnp.zeros((1, P, H)).at[0, 2, 1].set(100.0)  # two separators from here
    v = draw(1, T, 1, H)
    near(contextual_position_attention(q, k, v, table, block=4)[:, -1], v[:, 6], 1e-3)
