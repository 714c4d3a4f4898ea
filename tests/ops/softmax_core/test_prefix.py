"""One query for all prefixes: the oracle, the paper's scan, and scores that would overflow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.softmax_core import multi_head_attention, prefix_attention
from tests.helpers import draws, near
from tests.ops.plain import softmax

B, T, N, H = 2, 9, 4, 8


def prefix_attention_oracle(k, v, q):
    out = np.zeros(v.shape)
    for b, t, n in np.ndindex(*k.shape[:3]):
        seen = slice(t + 1)
        out[b, t, n] = softmax(k[b, seen, n] @ q[n] / np.sqrt(k.shape[-1])) @ v[b, seen, n]
    return out


def merge(a, b):
    """Two prefixes' (max, sum of exponentials, sum of weighted values) become their union's."""
    m = jnp.maximum(a[0], b[0])
    x, y = jnp.exp(a[0] - m), jnp.exp(b[0] - m)
    return m, x * a[1] + y * b[1], x[..., None] * a[2] + y[..., None] * b[2]


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_prefix_attention_is_the_papers_scan(scale):
    k, v, q = draws((B, T, N, H), (B, T, N, H), (N, H))
    scores = scale * jnp.einsum("NH,BTNH->BTN", q, k) / H**0.5
    scan = jax.jit(functools.partial(jax.lax.associative_scan, merge, axis=1))
    _, u, w = scan((scores, jnp.ones_like(scores), v))
    got = prefix_attention(k, v, scale * q)
    near(got, w / u[..., None])
    if scale == 1.0:
        asked = jnp.broadcast_to(q, (B, 1, N, H))
        near(got[:, -1:], multi_head_attention(asked, k, v))
