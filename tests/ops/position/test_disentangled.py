"""Disentangled attention: its oracle, and tables that do not fit."""

import numpy as np
import pytest

from attnjax.ops.position import disentangled_attention
from tests.helpers import draws, qkv
from tests.ops.plain import blend, weights

B, T, N, H = 2, 9, 4, 8


def disentangled_attention_oracle(q, k, v, q_rel, k_rel, allowed=None):
    (_, _, N, H), K = q.shape, k.shape[2]
    far = len(k_rel) // 2

    def delta(i, j):
        if i - j <= -far:
            return 0
        return 2 * far - 1 if i - j >= far else i - j + far

    def score(b, n, i, j):
        query, key = q[b, i, n], k[b, j, n * K // N]
        return (
            query @ key + query @ k_rel[delta(i, j), n] + key @ q_rel[delta(j, i), n]
        ) / np.sqrt(3 * H)

    return blend(weights(q, k, allowed, logit=score), v)


def test_disentangled_attention_refuses_tables_that_do_not_fit():
    q, k, v = qkv(B, T, N, H)
    odd, even = draws((5, N, H), (6, N, H))
    with pytest.raises(ValueError, match=r"q_rel, k_rel: \(5, 4, 8\) .* expected"):
        disentangled_attention(q, k, v, odd, odd)
    with pytest.raises(ValueError, match=r"q_rel, k_rel: \(6, 4, 8\) and \(5, 4, 8\)"):
        disentangled_attention(q, k, v, even, odd)
