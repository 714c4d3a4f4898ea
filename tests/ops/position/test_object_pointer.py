"""Pointing at objects: the oracle, stopping, and codes of places."""

import numpy as np

from attnjax.ops.position import gaussian_codes, object_pointer
from tests.helpers import draws, near
from tests.ops.plain import softmax


def object_pointer_oracle(q, k, weights, bias):
    (B, T, N, H), S = q.shape, k.shape[1]
    out = np.zeros((B, T, S + 1))
    for b, i in np.ndindex(B, T):
        logits = np.full(S + 1, bias[0])
        for n, j in np.ndindex(N, S):
            logits[j] += weights[n] * (q[b, i, n] @ k[b, j, n]) / np.sqrt(H)
        out[b, i] = softmax(logits)
    return out


def test_objects_in_another_order_and_the_bias_of_all():
    q, k, w, b = draws((2, 3, 2, 4), (2, 5, 2, 4), (2,), (1,))
    p = object_pointer(q, k, w, b)
    near(object_pointer(q, k[:, ::-1], w, b + 3.0), p[..., [4, 3, 2, 1, 0, 5]])


def test_cosines_of_codes():
    codes = gaussian_codes(24, 86)
    at = np.arange(24)
    near(codes @ codes.T, np.exp(-((at[:, None] - at) ** 2) / 8), 1e-6)
    few = gaussian_codes(24, 8)
    assert (np.diff((few @ few.T)[0, :6]) < 0).all()
