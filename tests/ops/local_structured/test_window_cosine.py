"""Windows with cosines for scores: the oracle, the clipped scale, the network of places."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import Affine
from attnjax.ops.local_structured import window_cosine_attention
from attnjax.ops.local_structured.grids import PlaceNet
from attnjax.ops.local_structured.window_cosine import continuous_table
from tests.helpers import draw, draws, near, qkv, weights_of
from tests.ops.local_structured.test_grids import window_attention_oracle
from tests.ops.plain import sigmoid, unit

N, H = 4, 8


def window_cosine_attention_oracle(q, k, v, log_scale, table, shape, shift=0):
    """Scores of the window oracle are q.k / sqrt(H): queries have the scale and sqrt(H)."""
    window = tuple((n + 1) // 2 for n in table.shape[1:])
    scale = np.array([min(np.exp(t), 100.0) for t in log_scale]) * np.sqrt(q.shape[-1])
    return window_attention_oracle(
        unit(q) * scale[:, None], unit(k), v, shape, window, shift, table
    )


def test_the_scale_ends_at_100_and_the_size_of_vectors_does_not_matter():
    q, k, _ = qkv(1, 16, N, H)
    table = jnp.zeros((N, 7, 7))
    weights = lambda q, t: weights_of(
        window_cosine_attention, q, k, jnp.full(N, t), table, shape=(4, 4)
    )
    near(weights(3 * q, 1.0), weights(q, 1.0))
    near(weights(q, 9.0), weights(q, np.log(100.0)))
    slope = jax.grad(lambda t: window_cosine_attention(q, k, k, t, table, shape=(4, 4)).sum())
    assert not np.any(slope(jnp.full(N, 5.0)))
    assert np.all(slope(jnp.full(N, 1.0)))


def test_a_table_of_a_network_of_places():
    """Entry d stands for the query's place less the key's, -d, as the network sees it."""
    (w1,), (b1, w2) = draws((2, 6)), draws((6,), (6, N), seed=1)
    net = PlaceNet(Affine(w1, b1), Affine(w2, jnp.zeros(N)))
    for trained in (None, 5):
        got = np.asarray(continuous_table(net, (2, 3), trained))
        assert got.shape == (N, 3, 5)
        for dy, dx in np.ndindex(3, 5):
            place = np.array([1.0 - dy, 2.0 - dx]) / ([1.0, 2.0] if trained is None else 4.0) * 8
            c = np.sign(place) * np.log2(np.abs(place) + 1) / np.log2(8)
            hidden = np.maximum(c @ np.asarray(w1) + np.asarray(b1), 0)
            near(got[:, dy, dx], 16 * sigmoid(hidden @ np.asarray(w2)))


def test_values_alone():
    v, (table,) = draw(2, 16, N, H), draws((N, 3, 3), seed=1)
    t = np.array([np.log(10.0), 4.3, 9.0, 0.0])  # the second is below the limit, the third above
    got = window_cosine_attention(v, v, v, jnp.asarray(t), table, shape=(4, 4), shift=1)
    exact = np.asarray(v, np.float64)
    want = window_cosine_attention_oracle(exact, exact, exact, t, np.asarray(table), (4, 4), 1)
    near(got, want)
