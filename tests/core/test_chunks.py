"""Scanning over chunks of tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.chunks import scan_chunks


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_chunks_of_any_size_are_one_run(size):
    """A running sum, over trees, with a last chunk that is filled up."""
    x = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)

    def step(total, chunk):
        sums = total[:, None] + jnp.cumsum(chunk["x"] * chunk["w"][..., None], axis=1)
        return sums[:, -1], (sums, -sums)

    tokens = {"x": jnp.asarray(x), "w": jnp.full((2, 7), 2.0)}
    last, (sums, negative) = scan_chunks(step, jnp.ones((2, 3)), tokens, size)
    want = 1 + np.cumsum(2 * x, axis=1)
    np.testing.assert_allclose(sums, want, atol=1e-5)
    np.testing.assert_allclose(negative, -want, atol=1e-5)
    np.testing.assert_allclose(last, want[:, -1], atol=1e-5)


def test_a_step_need_not_give_results():
    step = lambda state, chunk: (state + chunk.sum(1), None)
    last, results = scan_chunks(step, jnp.zeros(2), jnp.ones((2, 5)), 2)
    assert results is None and last.tolist() == [5.0, 5.0]
