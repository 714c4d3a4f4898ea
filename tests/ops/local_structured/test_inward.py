"""Inward windows: the oracle by the code's distances, the number of keys, errors."""

import math

import numpy as np
import pytest

from attnjax.ops.local_structured import inward_window_attention, neighborhood_attention
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import blend, weights


def inward_window_attention_oracle(q, k, v, shape, trained):
    """A key is at most d before or behind the query, and more where the other side is cut off."""
    cells, (H, N, K) = list(np.ndindex(*shape)), (q.shape[-1], q.shape[2], k.shape[2])

    def sees(i, j):
        for axis in (1, 2):
            d, n = trained[axis - 1] // 2, shape[axis]
            x, y = cells[i][axis], cells[j][axis]
            after = d + max(d - x, 0)
            before = d + max(d + x - n + 1, 0)
            if not x - before <= y <= x + after:
                return False
        return True

    T, F = len(cells), max(trained[0] * trained[1], 2)
    near = np.array([[sees(i, j) for j in range(T)] for i in range(T)])
    scale = math.sqrt(math.log(2 * F) / math.log(F) / H)
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, n * K // N] * scale
    return blend(weights(q, k, near, logit=score), v)


def test_every_query_sees_a_frame_of_training_in_all_frames():
    q, k, v = qkv(1, 60, 2, 8)
    given = {"shape": (2, 5, 6), "trained": (3, 4)}
    seen = weights_of(inward_window_attention, q, k, **given) > 0
    assert (seen.sum(-1) == 2 * 3 * 5).all()
    scale = math.sqrt(math.log(24, 12))
    same = neighborhood_attention(q * scale, k, v, shape=(2, 5, 6), window=(2, 3, 5))
    near(inward_window_attention(q, k, v, **given), same)


def test_pictures_are_videos_of_one_frame():
    with pytest.raises(ValueError, match=r"expected \(frames, rows, columns\) of T = 12 cells"):
        inward_window_attention(*qkv(1, 12, 2, 8), shape=(3, 4))
