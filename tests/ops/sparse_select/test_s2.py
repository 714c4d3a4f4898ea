"""S2 attention: its oracle, what heads see together, how much each sees."""

import numpy as np
import pytest

from attnjax.ops.sparse_select import s2_attention, s2_blocks
from tests.helpers import pairs_of, qkv
from tests.ops.plain import blend, both, causal, weights


def s2_sees(i, j, n, N, local, stride):
    """Whether block i of queries of head n sees block j of keys."""
    step = max(1, stride // N)
    return j <= i and (i - j < local or (j + n * step + 1) % stride == 0)


def s2_attention_oracle(q, k, v, block, local, stride, allowed=None):
    T, N, S = *q.shape[1:3], k.shape[1]
    seen = np.zeros((1, N, T, S), bool)
    for n, i, j in np.ndindex(N, T, S):
        seen[0, n, i, j] = s2_sees(i // block, j // block, n, N, local, stride)
    return blend(weights(q, k, both(allowed, both(seen, causal(T, S)))), v)


@pytest.mark.parametrize(("N", "stride"), [(8, 8), (2, 8), (3, 4), (4, 3)])
def test_a_head_sees_its_own_share_of_blocks_and_heads_together_all(N, stride):
    n, local = 40, 4
    got = pairs_of(s2_blocks(1, 2 * n - 1, N, block=2, local=local, stride=stride))[0]
    for head, pairs in enumerate(got):
        rule = {(i, j) for i, j in np.ndindex(n, n) if s2_sees(i, j, head, N, local, stride)}
        assert pairs == rule
        assert sum(i == n - 1 for i, _ in pairs) <= local + -(-n // stride)
    together = set().union(*got)
    assert (together == {(i, j) for i in range(n) for j in range(i + 1)}) == (N >= stride)
    assert len({frozenset(pairs) for pairs in got}) == min(N, stride)


def test_numbers_of_blocks_that_are_none():
    for name in ("block", "local", "stride"):
        with pytest.raises(ValueError, match=f"{name}: 0; expected at least 1"):
            s2_attention(*qkv(1, 4, 2, 4), **{name: 0})
