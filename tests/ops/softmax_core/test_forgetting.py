"""Forgetting attention: its oracle, and a closed gate."""

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.ops.softmax_core import forgetting_attention, multi_head_attention
from tests.helpers import near, qkv
from tests.ops.plain import blend, causal, kv, weights

B, T, N, H = 2, 9, 4, 8


def forgetting_attention_oracle(q, k, v, log_f, allowed=None):
    H = q.shape[-1]
    allowed = causal(q.shape[1], k.shape[1]) if allowed is None else allowed

    def score(b, n, i, j):
        # the gates between key and query; for a key ahead of its query the sum runs backwards
        lo, hi, sign = (j, i, 1) if j <= i else (i, j, -1)
        decay = sign * sum(log_f[b, t, n] for t in range(lo + 1, hi + 1))
        return q[b, i, n] @ k[b, j, kv(q, k, n)] / np.sqrt(H) + decay

    return blend(weights(q, k, allowed, logit=score), v)


def test_a_closed_forget_gate_hides_all_keys_before_it():
    q, k, v = qkv(B, T, N, H)
    log_f = jnp.zeros((B, T, N)).at[:, 4].set(-1e9)
    after = forgetting_attention(q, k, v, log_f)[:, 4:]
    near(after, multi_head_attention(q[:, 4:], k[:, 4:], v[:, 4:], mask=masks.causal))
