"""Softplus attention: its oracle, sums of weights, exact zeros."""

import numpy as np

from attnjax.ops.softmax_core import softplus_attention
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import blend, causal, kv, weights

B, T, N, H = 2, 9, 4, 8


def softplus_attention_oracle(q, k, v, power, offset, allowed=None):
    (_, T, _, H), S = q.shape, k.shape[1]
    allowed = causal(T, S) if allowed is None else allowed

    def reweighted(x):
        n = len(x)
        a = np.logaddexp(0, np.log(H) * np.log(n) / np.sqrt(H) * x)
        sharp = np.maximum(n * a / a.sum() - offset, 0) ** power
        return sharp / sharp.sum() if sharp.sum() > 0 else sharp

    dot = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, allowed, reweighted, dot), v)


def test_softplus_weights_sum_to_one_and_sharpen_to_exact_zeros():
    q, k, _ = qkv(B, T, N, H)
    seen = np.tril(np.ones((T, T), bool))
    plain = weights_of(softplus_attention, q, k)
    near(plain.sum(-1), np.ones((B, N, T)))
    assert (plain[..., seen] > 0).all()
    sharp = weights_of(softplus_attention, q, k, power=3, offset=0.9)
    near(sharp.sum(-1), np.ones((B, N, T)))
    level = plain * seen.sum(-1)[:, None]
    assert (sharp[level < 0.899] == 0).all() and (sharp[level > 0.901] > 0).all()
    assert np.isfinite(weights_of(softplus_attention, 1e4 * q, k, power=3, offset=0.9)).all()
