"""Memory as a gate: its oracle; persistent tokens."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import memory_as_gate
from attnjax.ops.linear_recurrent.titans_gate import Persistent
from tests.helpers import draws, near, qkv
from tests.ops.plain import heads, sigmoid, softmax

B, T, N, K, H, D = 2, 12, 4, 2, 6, 5


def memory_as_gate_oracle(q, k, v, memory, gate, persistent, window):
    (B, T, N, H), S = q.shape, k.shape[1]
    k, v = heads(k, N), heads(v, N)
    learned_k, learned_v = (heads(x[None], N)[0] for x in persistent)
    out = np.zeros_like(memory)
    for b, t, n in np.ndindex(B, T, N):
        near = range(max(0, t - window + 1), min(t + 1, S))
        keys = [*learned_k[:, n], *(k[b, j, n] for j in near)]
        values = [*learned_v[:, n], *(v[b, j, n] for j in near)]
        w = softmax(np.array(keys) @ q[b, t, n] / np.sqrt(H))
        g = sigmoid(gate[b, t, n])
        out[b, t, n] = (1 - g) * (w @ np.array(values)) + g * memory[b, t, n]
    return out


def test_a_closed_gate_with_persistent_tokens_sees_them_always():
    (q, k, v), (memory,) = qkv(B, T, N, H, K=K, D=D), draws((B, T, N, D), seed=3)
    pk, pv = draws((3, K, H), (3, K, D), seed=4)
    closed = jnp.full((B, T, N), -100.0)
    v_far = jnp.zeros_like(v)
    out = memory_as_gate(q, k, v_far, memory, closed, Persistent(pk, pv), window=2)
    assert (jnp.abs(out) > 1e-4).any(-1).all()
    shared = Persistent(pk[:, :1], pv[:, :1])
    both = Persistent(*(jnp.repeat(x, K, axis=1) for x in shared))
    run = lambda p: memory_as_gate(q, k, v, memory, closed, p, window=2)
    near(run(shared), run(both))
    opened = memory_as_gate(q, k, v, memory, -closed, Persistent(pk, pv), window=2)
    near(opened, memory)
