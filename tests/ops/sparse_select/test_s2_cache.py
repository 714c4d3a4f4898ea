"""The cache of S2 attention: the oracle asks all later queries; decoding from what is kept."""

import jax
import numpy as np
import pytest

from attnjax import attend, masks
from attnjax.ops.sparse_select import s2_attention, s2_kept
from tests.helpers import near, qkv


def s2_kept_oracle(length, blocks, heads, block=64, local=16, stride=8):
    kept = np.zeros((heads, blocks), bool)
    for n, j in np.ndindex(heads, blocks):
        later = range(length // block, length // block + blocks + local + 2)
        sees = lambda u, n=n, j=j: (
            j <= u and (u - j < local or (j + n * max(1, stride // heads) + 1) % stride == 0)
        )
        kept[n, j] = j * block < length and any(map(sees, later))
    return kept


@pytest.mark.parametrize(("local", "stride", "heads"), [(1, 3, 4), (2, 8, 2), (3, 2, 1)])
def test_every_length(local, stride, heads):
    s = {"blocks": 9, "heads": heads, "block": 4, "local": local, "stride": stride}
    policy = jax.jit(lambda length: s2_kept(length, **s))
    for length in range(37):
        np.testing.assert_array_equal(policy(length), s2_kept_oracle(length, **s))
    assert policy._cache_size() == 1


def test_the_next_token_sees_nothing_that_was_dropped():
    q, k, v = qkv(1, 24, 4, 4)
    s = {"block": 2, "local": 2, "stride": 5}
    want = s2_attention(q, k, v, **s)
    for t in (7, 16, 23):
        kept = np.asarray(s2_kept(t, blocks=12, heads=4, **s))
        assert kept.sum() < 4 * -(-t // 2)
        tokens = np.repeat(kept, 2, axis=1)
        spoiled = np.where(tokens.T[None, :, :, None] | (np.arange(24) >= t)[:, None, None], v, 9e9)
        got = s2_attention(q, k, spoiled.astype(np.float32), **s)[:, t]
        near(got, want[:, t])
    full = attend(q, k, v, mask=masks.causal)
    assert np.abs(full - want).max() > 0.1


def test_a_stride_of_nothing():
    with pytest.raises(ValueError, match="stride: 0; expected at least 1"):
        s2_kept(3, blocks=2, heads=1, stride=0)
