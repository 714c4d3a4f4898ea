"""The memory of Titans: its oracle; depth, chunks, reading, and forgetting beside DeltaNet."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.recurrence.linear import linear_attend
from attnjax.ops.linear_recurrent import titans_memory
from attnjax.ops.linear_recurrent.titans import network
from tests.helpers import draws, near, qkv
from tests.ops.plain import heads, sigmoid

B, T, N, K, H, D = 2, 12, 4, 2, 6, 5


def titans_memory_oracle(q, k, v, eta, theta, alpha, weights, chunk=16):
    """Token by token, with the gradients of one matrix or of a network of two written out."""
    (B, T, N, _), D = q.shape, v.shape[-1]
    k, v = heads(k, N), heads(v, N)
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        memory = [w[n].copy() for w in weights]
        momentum = [np.zeros_like(w) for w in memory]
        for t in range(T):
            if t % chunk == 0:
                held = [w.copy() for w in memory]  # where the gradients of the chunk are taken
            key, value = k[b, t, n], v[b, t, n]
            if len(held) == 1:
                gradient = [2 * np.outer(key, key @ held[0] - value)]
            else:
                hidden = key @ held[0]
                gate = sigmoid(hidden)
                error = 2 * (hidden * gate @ held[1] - value)
                slope = gate * (1 + hidden * (1 - gate))
                gradient = [np.outer(key, held[1] @ error * slope), np.outer(hidden * gate, error)]
            for i, g in enumerate(gradient):
                momentum[i] = eta[b, t, n] * momentum[i] - theta[b, t, n] * g
                memory[i] = (1 - alpha[b, t, n]) * memory[i] + momentum[i]
            read = q[b, t, n] @ memory[0]
            if len(memory) == 2:
                read = read * sigmoid(read) @ memory[1]
            out[b, t, n] = read
    return out


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_memory_of_any_depth_learns_by_its_gradient(layers):
    """One token, one head: M = W - theta dloss/dW."""
    widths = [H, *[3] * (layers - 1), D]
    weights = tuple(draws(*((1, a, b) for a, b in pairwise(widths))))
    k, v, q = draws((H,), (D,), (H,), seed=1)
    loss = lambda w: jnp.sum((network(w, k) - v) ** 2)
    own = jax.tree.map(lambda w: w[0], weights)
    after = jax.tree.map(lambda w, g: w - 0.1 * g, own, jax.grad(loss)(own))
    one = lambda x: x[None, None, None]
    gate = lambda x: jnp.full((1, 1, 1), x)
    out = titans_memory(one(q), one(k), one(v), gate(0.9), gate(0.1), gate(0.0), weights)
    near(out[0, 0, 0], network(after, q))
    assert not np.allclose(network(after, q), network(own, q), atol=1e-3)


def gates(seed=1):
    shapes = [(B, T, N)] * 3
    eta, theta, alpha = map(jax.nn.sigmoid, draws(*shapes, seed=seed))
    return eta, 0.1 * theta, 0.5 * alpha


def deep(seed=2):
    return tuple(0.4 * w for w in draws((N, H, 3), (N, 3, D), seed=seed))


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_memory_goes_on_at_the_end_of_a_chunk(chunk):
    q, k, v = qkv(B, T, N, H, K=K, D=D)
    tokens = (q, 0.3 * k, v, *gates())

    def run(start, stop, state):
        part = [x[:, start:stop] for x in tokens]
        return titans_memory(*part, deep(), chunk=chunk, state=state, return_state=True)

    whole = run(0, T, None)
    first, state = run(0, 8, None)
    second, state = run(8, T, state)
    near((jnp.concatenate([first, second], axis=1), state), whole)


def test_reading_leaves_a_memory_as_it_is():
    (q, k, v), (other, _, _) = qkv(B, T, N, H, K=K, D=D), qkv(B, T, N, H, K=K, D=D, seed=5)
    run = lambda q: titans_memory(q, 0.3 * k, v, *gates(), deep(), return_state=True)
    (out, state), (changed, same) = run(q), run(other)
    assert jax.tree.all(jax.tree.map(np.array_equal, state, same))
    assert not np.allclose(out, changed)


def test_forgetting_takes_the_gradient_at_the_undecayed_memory():
    """The one difference from gated DeltaNet, which erases after the decay."""
    q, k, v = qkv(B, T, N, H, K=K, D=D)
    _, theta, alpha = gates()
    zero = (jnp.zeros((N, H, D)),)
    run = lambda alpha: titans_memory(q, k, v, 0 * theta, theta, alpha, zero, chunk=1)
    gated = lambda alpha: linear_attend(q, k, v, log_decay=jnp.log1p(-alpha), beta=2 * theta)
    near(run(0 * alpha), gated(0 * alpha), 1e-4)
    assert not np.allclose(run(alpha), gated(alpha), atol=1e-3)
