"""Head tokens: oracles, patches without an order, and head tokens that nobody hears."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.multihead_structure import dynamic_aggregation, head_token_attention
from attnjax.ops.multihead_structure.head_tokens import OPS
from tests.helpers import near
from tests.ops.plain import depthwise, softmax

gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2, otypes=[float])


def head_token_attention_oracle(x, weights):
    w, T, (N, H) = weights, x.shape[1], (len(weights.places), len(weights.scale))
    out = np.zeros_like(x)
    for b in range(len(x)):
        more = []
        for n in range(N):
            wide = x[b, :, n * H : n * H + H].mean(0) @ w.summary.w + w.summary.b
            token = []
            for m in range(N):
                part = wide[m * H : m * H + H]
                part = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
                token.append(gelu(part * w.scale + w.shift))
            more.append(np.concatenate(token) + w.places[n])
        every = np.concatenate([x[b], more])
        q, k, v = (every @ f.w + f.b for f in (w.q, w.k, w.v))
        read = np.zeros_like(every)
        for n in range(N):
            at = slice(n * H, n * H + H)
            for t in range(T + N):
                read[t, at] = softmax(k[:, at] @ q[t, at] / np.sqrt(H)) @ v[:, at]
        y = read @ w.out.w + w.out.b
        out[b] = y[:T]
        out[b, 0] += y[T:].mean(0)
    return out


def dynamic_aggregation_oracle(x, weights, shape):
    w, out = weights, np.zeros_like(x)
    for b in range(len(x)):
        c = gelu(x[b, 1:] @ w.inner.w + w.inner.b).reshape(*shape, w.inner.b.size)
        c = c + gelu(depthwise(c, w.kernel) + w.kernel_bias)
        out[b, 1:] = c.reshape(-1, w.inner.b.size) @ w.outer.w + w.outer.b
        mean = out[b, 1:].mean(0) if len(out[b]) > 1 else np.zeros(x.shape[2])
        told = gelu(mean @ w.squeeze.w + w.squeeze.b) @ w.excite.w + w.excite.b
        out[b, 0] = x[b, 0] * told
    return out


def test_patches_have_no_order():
    args = OPS[0].sample(seed=1)
    order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(8)])
    out = head_token_attention(**args)
    near(head_token_attention(**args | {"x": args["x"][:, order]}), out[:, order], 1e-4)


def test_weights_that_are_not_of_the_width():
    args = OPS[0].sample(seed=1)
    with pytest.raises(ValueError, match=r"places, scale: \(4, 8\), \(2,\); expected N H = W = 6"):
        head_token_attention(args["x"][..., :6], args["weights"])
    args = OPS[1].sample(seed=1)
    with pytest.raises(ValueError, match=r"shape: \(3, 3\); expected T - 1 = 8 cells"):
        dynamic_aggregation(**args | {"shape": (3, 3)})
    assert jnp.isfinite(dynamic_aggregation(**args)).all()
