"""LAMA pooling: its oracle, a learned context, and padding that is not there."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.multihead_structure import lama_pool
from tests.helpers import draws, near, run
from tests.ops.plain import softmax


def lama_pool_oracle(x, of_context, of_tokens, context=None, visible=None):
    out = np.zeros((len(x), of_context.shape[1], x.shape[2]))
    for b in range(len(x)):
        rows = x[b] if visible is None else x[b][np.asarray(visible[b])]
        c = rows.mean(0) if context is None else context
        f = np.tanh((of_context.T @ c)[:, None] * (of_tokens.T @ rows.T))
        f = f / np.sqrt((f**2).sum(0))
        for n in range(len(f)):
            out[b, n] = softmax(f[n]) @ rows
    return out


def test_a_learned_context_and_padding():
    x, p, r, c = draws((2, 6, 5), (5, 3), (5, 3), (5,))
    visible = jnp.arange(6) < jnp.array([[6], [4]])
    padded = jnp.where(visible[..., None], x, jnp.nan)
    for context in (None, c):
        got = run(lama_pool, padded, p, r, context, visible=visible)
        near(got, lama_pool_oracle(*map(np.asarray, (x, p, r)), context, visible), 1e-5)
