"""LAVO: its oracle; the state is an orthogonal mean of constant size."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import lavo
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import heads, softmax


def lavo_oracle(x, weights):
    """With every memory written out: its rows, their keys and their values."""
    bases, w_q, w_k, w_v, bias = weights
    (B, T, _), (N, window) = x.shape, bias.shape
    w_k, w_v = heads(w_k[None], N)[0], heads(w_v[None], N)[0]
    out = np.zeros((B, T, N, w_v.shape[-1]))
    for b, t, n in np.ndindex(B, T, N):
        mean = (x[b, : t + 1] @ bases.T).mean(0)
        memory = np.diag(mean) @ bases
        near = range(max(0, t - window + 1), t + 1)
        keys = np.concatenate([memory, x[b, near]])
        shift = np.array([0.0] * len(memory) + [bias[n, t - j] for j in near])
        s = keys @ w_k[:, n] @ (x[b, t] @ w_q[:, n]) / np.sqrt(w_q.shape[-1]) + shift
        out[b, t, n] = softmax(s) @ keys @ w_v[:, n]
    return out


def test_an_orthogonal_memory_is_a_mean_of_constant_size():
    w = BY_NAME["lavo"].sample()["weights"]
    x = draw(2, 20, 8)
    run = jax.jit(lambda x: lavo(x, w, return_state=True)[1])
    short, state = run(x[:, :5]), run(x)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, short)
    mean = state.total / state.count
    near(mean, (x @ w.bases.T).mean(1))
    rows = mean[..., None] * w.bases
    gram = rows @ rows.swapaxes(1, 2)
    near(gram, jnp.einsum("BR,RS->BRS", jnp.square(mean), jnp.eye(len(w.bases))))
    assert np.array_equal(state.before, x[:, -2:])
