"""RoPE and NoPE by turns: the oracle, which layers are which, and positions that do not count."""

import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.position import hybrid_position_attention
from tests.helpers import near, qkv
from tests.ops.plain import blend, both, kv, weights


def hybrid_position_attention_oracle(q, k, v, layer, window, base=10000.0, allowed=None):
    """Each plane as a complex number."""
    (T, S), H = (q.shape[1], k.shape[1]), q.shape[-1]
    full = layer % 4 == 3
    seen = np.array([[j <= i and (full or i - j < window) for j in range(S)] for i in range(T)])
    rate = np.array([base ** (-2 * m / H) for m in range(H // 2)])

    def score(b, n, i, j):
        x, y = q[b, i, n], k[b, j, kv(q, k, n)]
        if full:
            return x @ y / np.sqrt(H)
        planes = lambda x: x[: H // 2] + 1j * x[H // 2 :]
        return (planes(x) * planes(y).conj() * np.exp(1j * rate * (i - j))).real.sum() / np.sqrt(H)

    return blend(weights(q, k, both(seen, allowed), logit=score), v)


def test_every_fourth_layer_sees_all_and_the_others_a_window():
    q, k, v = qkv(1, 6, 2, 4)
    far = v.at[:, 0].add(1.0)
    for layer in range(8):
        run = lambda v, layer=layer: hybrid_position_attention(q, k, v, layer=layer, window=3)
        moved = np.abs(run(far) - run(v)).max((0, 2, 3)) > 1e-6
        np.testing.assert_array_equal(moved, np.arange(6) < (6 if layer in (3, 7) else 3))


def test_a_mask_forbids_more():
    q, k, v = qkv(1, 6, 2, 4)
    alone = hybrid_position_attention(q, k, v, layer=3, mask=masks.window(0, 0))
    near(alone, v)


def test_layers_and_windows_that_are_none():
    q, k, v = qkv(1, 2, 1, 4)
    for layer, window in ((-1, 3), (0, 0)):
        with pytest.raises(ValueError, match=f"layer, window: {layer}, {window}; expected"):
            hybrid_position_attention(q, k, v, layer=layer, window=window)
