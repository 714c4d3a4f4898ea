"""The oracle of `mambattention` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain as _plain
from tests.ops.linear_recurrent.test_selective_mixer import both_directions


def mambattention(x, shared, time, frequency):
    def block(rows, scale, shift, forward, backward):
        centered = rows - rows.mean(-1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * scale + shift
        q, k, v = (np.einsum("tw,wnh->tnh", normed, w)[None] for w in shared[:3])
        heads = _plain.blend(_plain.weights(q, k, None), v)[0]
        rows = rows + np.einsum("tnh,nhw->tw", heads, shared[3])
        return rows + both_directions(rows[None], forward, backward)[0]

    out = x.copy()
    for b in range(len(x)):
        for f in range(x.shape[2]):
            out[b, :, f] = block(out[b, :, f], *time)
        for t in range(x.shape[1]):
            out[b, t] = block(out[b, t], *frequency)
    return out
