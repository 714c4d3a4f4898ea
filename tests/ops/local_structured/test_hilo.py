"""HiLo attention: the oracle, which heads see what, constant maps."""

import numpy as np
import pytest

from attnjax.ops.local_structured import hilo_attention
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import blend, blocks_of_cells, heads, softmax, weights

N, H = 4, 8


def hilo_attention_oracle(q, k, v, shape, window, alpha=0.5):
    B, T, N, H = q.shape
    window = (window,) * len(shape) if isinstance(window, int) else window
    low = N if set(window) == {1} else int(N * alpha)
    groups = list(blocks_of_cells(shape, window).values())
    k, v = heads(k, N), heads(v, N)
    home = {t: g for g in groups for t in g}
    together = np.array([[j in home[i] for j in range(T)] for i in range(T)])
    out = blend(weights(q, k, together), v)
    for b, i in np.ndindex(B, T):
        for n in range(N - low, N):
            keys = [np.mean([k[b, j, n] for j in g], axis=0) for g in groups]
            values = [np.mean([v[b, j, n] for j in g], axis=0) for g in groups]
            w = softmax(np.array([q[b, i, n] @ key for key in keys]) / np.sqrt(H))
            out[b, i, n] = sum(x * value for x, value in zip(w, values, strict=True))
    return out


def test_high_heads_stay_in_their_window_and_low_heads_see_all_cells_of_a_window_alike():
    q, k, _ = qkv(1, 16, N, H)
    weights = weights_of(hilo_attention, q, k, shape=(4, 4), alpha=0.25)[0]
    near((weights[:3] > 0).sum(-1), np.full((3, 16), 4))
    near(weights.sum(-1), np.ones((N, 16)))
    windows = weights[3].reshape(16, 2, 2, 2, 2)
    near(windows, np.broadcast_to(windows[:, :, :1, :, :1], windows.shape))


def test_a_constant_map_stays():
    x = np.broadcast_to(np.asarray(draw(1, 1, N, H)), (1, 12, N, H))
    near(hilo_attention(x, x, x, shape=(3, 4)), x)


def test_a_share_of_more_than_all_heads_is_refused():
    with pytest.raises(ValueError, match=r"alpha: 1.5; expected a share of the heads"):
        hilo_attention(*qkv(1, 16, N, H), shape=(4, 4), alpha=1.5)
