"""Windows by head: the oracle, what each head sees, windows of layers and their budget."""

import numpy as np
import pytest

from attnjax.ops.local_structured import multi_scale_window_attention
from attnjax.ops.local_structured.multi_scale_window import scaled_windows
from tests.helpers import qkv, weights_of
from tests.ops.plain import blend, weights


def multi_scale_window_attention_oracle(q, k, v, windows):
    T, S = q.shape[1], k.shape[1]
    seen = np.array([[[i - w < j <= i for j in range(S)] for i in range(T)] for w in windows])
    return blend(weights(q, k, seen[None]), v)


def test_a_head_sees_its_window():
    q, k, _ = qkv(1, 12, 4, 8, K=2)
    seen = weights_of(multi_scale_window_attention, q, k, windows=(1, 3, 12, 2))[0] > 0
    for n, w in enumerate((1, 3, 12, 2)):
        assert (seen[n] == (np.tri(12) - np.tri(12, k=-w) > 0)).all()


def test_windows_of_layers_and_heads():
    of = [scaled_windows(64, layer, 8, 8) for layer in range(8)]
    assert of[0] == of[1] == (4, 4, 8, 8, 16, 16, 32, 32)
    assert of[7] == (32, 32, 64, 64, 128, 128, 256, 256)
    assert np.sum(of) / (64 * 64) == 225 / 256


def test_a_window_for_each_head():
    with pytest.raises(ValueError, match=r"windows: \(3, 3\); expected N = 4 lengths"):
        multi_scale_window_attention(*qkv(1, 12, 4, 8), windows=(3, 3))
