"""The oracle of `infini_delta` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import infini


def infini_delta_attention(q, k, v, beta, segment):
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
