"""Walks over the keys outwards: tiles against whole scores, more keys than queries, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from attnjax.core.numerics import einsum
from attnjax.core.pairwise.outward import attend_outward
from tests.helpers import draw, near


def fading(carry, tile):
    """Scores less the sum of the sigmoids of the scores from the key on."""
    s = einsum("BNtH,BNsH->BNts", tile.queries, tile.keys)
    gates = jnp.where(tile.ok, jax.nn.sigmoid(s), 0.0)
    met = lax.cumsum(gates, axis=3, reverse=True) + carry
    return s - met, carry + jnp.sum(gates, axis=-1, keepdims=True)


def walked(q, k, v, block):
    start = jnp.zeros((*q.shape[:3], 1), q.dtype)
    return attend_outward(fading, q, k, v, start, block=block)


def whole(q, k, v):
    T, S = q.shape[1], k.shape[1]
    s, ok = np.einsum("btnh,bsnh->bnts", q, k), np.tri(T, S, S - T, dtype=bool)
    gates = np.where(ok, 1 / (1 + np.exp(-s)), 0.0)
    met = np.flip(np.cumsum(np.flip(gates, -1), -1), -1)
    w = np.where(ok, np.exp(s - met), 0.0)
    mass = w.sum(-1)
    mean = np.einsum("bnts,bsnh->btnh", w / mass[..., None], v)
    return mean, np.log(mass).swapaxes(1, 2), gates.sum(-1).swapaxes(1, 2)[..., None]


@pytest.mark.parametrize(
    ("T", "S", "block"), [(9, 9, 16), (9, 9, 2), (11, 11, 3), (4, 9, 2), (1, 9, 4), (7, 12, 3)]
)
def test_tiles_are_the_whole(T, S, block):
    """In the mean, the mass and the carry; the queries are the last ones."""
    q, k, v = draw(2, T, 3, 4), draw(2, S, 3, 4, seed=1), draw(2, S, 3, 4, seed=2)
    near(tuple(jax.jit(walked, static_argnums=3)(q, k, v, block)), whole(q, k, v), 1e-5)


def test_the_backward_pass_holds_no_scores_of_all_pairs():
    T, N, H = 2048, 2, 8
    given = [jax.ShapeDtypeStruct((1, T, N, H), jnp.float32)] * 3
    loss = lambda q, k, v: jnp.sum(walked(q, k, v, 64).mean ** 2)
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*given).compile()
    assert program.memory_analysis().temp_size_in_bytes < N * T * T * 4 / 4


def test_bad_input_is_told():
    q, k = draw(1, 4, 1, 2), draw(1, 3, 1, 2)
    with pytest.raises(ValueError, match="T = 4 and S = 3, expected no more queries than keys"):
        walked(q, k, k, 2)
    with pytest.raises(ValueError, match="block is 0, expected an integer of at least 1"):
        walked(q, q, q, 0)
