"""The oracle of `infini_delta` in float64 loops, and its own tests."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import (
    infini_attention,
    infini_delta_attention,
)
from tests.helpers import draws, near
from tests.ops.plain import infini


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


B, T, N, K, H, D = 2, 12, 4, 2, 6, 5


def qkv(length=T, seed=0):
    return draws((B, length, N, H), (B, length, K, H), (B, length, K, D), seed=seed)


def test_the_delta_rule_writes_nothing_for_what_is_known():
    q, k, v = qkv(1)
    twice = lambda x: jnp.concatenate([x, x], axis=1)
    run = lambda op, *qkv: op(*qkv, jnp.zeros(N), segment=1, return_state=True)[1].memory
    once = run(infini_delta_attention, q, k, v)
    near(run(infini_delta_attention, *map(twice, (q, k, v))), once)
    near(run(infini_attention, *map(twice, (q, k, v))), 2 * once)
