"""The oracle of `rectified_linear` in float64 loops, and its own tests."""

import numpy as np

from tests.ops.plain import blend, sigmoid, weights


def rela(q, k, v, gain, allowed=None):
    return _rms_norm(_rectified(q, k, v, allowed), gain)


def rela_gated(q, k, v, gain, gate, allowed=None):
    out = _rectified(q, k, v, allowed)
    return sigmoid(gate * out) * _rms_norm(out, gain)


def _rectified(q, k, v, allowed):
    return blend(weights(q, k, allowed, lambda x: np.maximum(x, 0)), v)


def _rms_norm(x, gain):
    out = np.zeros_like(x)
    for b, i in np.ndindex(*x.shape[:2]):
        heads = x[b, i].ravel()
        out[b, i] = x[b, i] / np.sqrt(np.mean(heads**2) + 1e-6) * gain
    return out
