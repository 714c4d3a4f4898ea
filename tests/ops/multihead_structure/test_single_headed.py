"""Single-headed attention: oracles, and a memory."""

import jax
import numpy as np

from attnjax.ops.multihead_structure import single_headed_attention
from attnjax.ops.multihead_structure.single_headed import OPS
from tests.helpers import near
from tests.ops.plain import sigmoid, softmax


def norm(x, w):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12) * w.scale + w.shift


def single_headed_attention_oracle(x, weights):
    w, out = weights, np.zeros_like(x)
    z = sigmoid(w.d)
    u = sigmoid(z @ w.f.w + w.f.b) * np.tanh(z @ w.g.w + w.g.b)
    for b in range(len(x)):
        h, m = norm(x[b], w.h_norm), norm(x[b], w.m_norm)
        for t in range(len(h)):
            q = sigmoid(w.a) * norm(h[t] @ w.q.w + w.q.b, w.q_norm)
            seen = m[: t + 1]
            out[b, t] = h[t] + softmax((sigmoid(w.c) * seen) @ q / np.sqrt(len(q))) @ (u * seen)
    return out


def boom_oracle(x, up):
    inner = x @ up.w + up.b
    inner, W = inner * sigmoid(1.702 * inner), x.shape[-1]
    return sum(inner[..., c : c + W] for c in range(0, inner.shape[-1] - W + 1, W))


def test_the_memory_grows_and_the_first_token_sees_it():
    args = OPS[0].sample(seed=1)
    x, w = args["x"], args["weights"]
    memory = jax.random.normal(jax.random.key(0), (2, 3, 8))
    run = jax.jit(lambda memory: single_headed_attention(x, w, state=memory, return_state=True))
    out, grown = run(memory)
    near(grown[:, :3], memory)
    last, _ = run(memory.at[:, -1].add(1.0))
    assert abs(last - out)[:, 0].min(0).max() > 1e-4  # the first token sees all memory
