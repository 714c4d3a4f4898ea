"""DiffQKV attention: its oracle, and repeated heads."""

import numpy as np

from attnjax import masks
from attnjax.ops.multihead_structure import diff_qkv_attention
from attnjax.ops.softmax_core.multi_head import causal_attention
from tests.helpers import draws, near
from tests.ops.plain import blend, weights


def diff_qkv_attention_oracle(q, k, v, expand=None, allowed=None):
    N, H = q.shape[2:]
    wide = k if expand is None else np.einsum("bskr,rh->bskh", k, expand)
    score = lambda b, n, i, j: q[b, i, n] @ wide[b, j, n * k.shape[2] // N] / np.sqrt(H)
    return blend(weights(q, k, allowed, logit=score), v)


def test_keys_and_values_repeated_for_each_query_head():
    """N = 12, K = 2, F = 6."""
    q, k, v = draws((2, 5, 12, 4), (2, 5, 2, 4), (2, 5, 6, 3))
    every = [np.repeat(x, 12 // x.shape[2], axis=2) for x in (k, v)]
    near(diff_qkv_attention(q, k, v, mask=masks.causal), causal_attention(q, *every))
