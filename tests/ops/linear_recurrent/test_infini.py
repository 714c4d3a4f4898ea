"""The oracle of `infini` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import infini


def infini_attention(q, k, v, beta, segment):
    def recalled(query, keys, values):
        if len(keys) == 0:
            return np.zeros(v.shape[-1])
        w = keys @ query
        return w @ values / w.sum()

    return infini(q, k, v, beta, segment, recalled)
