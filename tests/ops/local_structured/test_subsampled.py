"""Sub-sampled attention: the oracle, and windows before it reach everything."""

import numpy as np

from attnjax.op import SIZES
from attnjax.ops.local_structured import window_attention
from attnjax.ops.local_structured.subsampled import OPS
from tests.ops.plain import softmax


def subsampled_attention_oracle(x, weights, shape):
    (B, T, W), w = x.shape, weights
    rows, columns = shape
    out = np.zeros((B, T, W))
    for b in range(B):
        keys = list(x[b])
        if w.summary is not None:
            keys, X = [], len(w.summary.kernel)
            for y, z in np.ndindex(-(-rows // X), -(-columns // X)):
                s = w.summary.bias.copy()
                for dy, dx in np.ndindex(X, X):
                    at = y * X + dy, z * X + dx
                    if at[0] < rows and at[1] < columns:
                        s = s + x[b, at[0] * columns + at[1]] @ w.summary.kernel[dy, dx]
                s = (s - s.mean()) / np.sqrt(s.var() + 1e-5)
                keys.append(s * w.summary.gain + w.summary.shift)
        for t in range(T):
            for n in range(w.q.shape[1]):
                q = x[b, t] @ w.q[:, n] + w.q_bias[n]
                scores = [q @ (key @ w.k[:, n]) / np.sqrt(len(q)) for key in keys]
                p = softmax(np.array(scores))
                read = sum(a * (key @ w.v[:, n]) for a, key in zip(p, keys, strict=True))
                out[b, t] += read @ w.out[n]
    return out + w.out_bias


def test_windows_and_then_summaries_reach_every_cell():
    (op,) = OPS
    given = op.sample(T=16)
    x = np.asarray(given["x"])

    def layers(x):
        tokens = x[:, :, None]
        near = window_attention(tokens, tokens, tokens, shape=(4, 4), window=2)[:, :, 0]
        return np.asarray(near), np.asarray(op.fn(near, given["weights"], shape=(4, 4)))

    other = x.copy()
    other[:, 15] += 1
    moved = [np.abs(a - b).max(-1) > 1e-6 for a, b in zip(layers(x), layers(other), strict=True)]
    assert x.shape[2] == SIZES["W"]
    assert not moved[0][:, :8].any()
    assert moved[1].all()
