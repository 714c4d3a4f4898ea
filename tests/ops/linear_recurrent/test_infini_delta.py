"""Infini-attention by the delta rule: its oracle; what is known is not written again."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import infini_attention, infini_delta_attention
from tests.helpers import near, qkv
from tests.ops.plain import infini

B, N, K, H, D = 2, 4, 2, 6, 5


def infini_delta_attention_oracle(q, k, v, beta, segment):
    def recalled(query, keys, values):
        """Every key's addition is a vector; a memory is their weighted sum."""
        if len(keys) == 0:
            return np.zeros(v.shape[-1])
        added = np.zeros_like(values)
        for start in range(0, len(keys), segment):
            for j in range(start, start + segment):
                known = 0.0
                if start:
                    w = keys[:start] @ keys[j]
                    known = w @ added[:start] / w.sum()
                added[j] = values[j] - known
        w = keys @ query
        return w @ added / w.sum()

    return infini(q, k, v, beta, segment, recalled)


def test_the_delta_rule_writes_nothing_for_what_is_known():
    q, k, v = qkv(B, 1, N, H, K=K, D=D)
    twice = lambda x: jnp.concatenate([x, x], axis=1)
    run = lambda op, *qkv: op(*qkv, jnp.zeros(N), segment=1, return_state=True)[1].memory
    once = run(infini_delta_attention, q, k, v)
    near(run(infini_delta_attention, *map(twice, (q, k, v))), once)
    near(run(infini_attention, *map(twice, (q, k, v))), 2 * once)
