"""RIPO attention: its oracle with a vector for each pair, shifts, and embeddings that turn."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.position import music_embedding, ripo_attention
from attnjax.ops.position.ripo import OPS
from tests.helpers import draws, near
from tests.ops.plain import blend, causal, kv, weights


def ripo_attention_oracle(q, k, v, attributes, relations, allowed=None):
    """Each pair has the vector W FMS(difference), as the code has it."""
    (T, H), (A, R) = (q.shape[1], q.shape[3]), relations.rates.shape
    far = len(relations.table) // 2
    allowed = causal(T, T) if allowed is None else allowed

    def score(b, n, i, j):
        vector = relations.table[far + np.clip(j - i, -far, far)] + k[b, j, kv(q, k, n)]
        for a, r in np.ndindex(A, R):
            angle = relations.rates[a, r] * (attributes[b, i, a] - attributes[b, j, a])
            sine, cosine = relations.weights[a, r, :, n]
            vector = vector + np.sin(angle) * sine + np.cos(angle) * cosine
        return q[b, i, n] @ vector / np.sqrt(H)

    return blend(weights(q, k, allowed, logit=score), v)


def test_another_key_or_another_beginning_changes_nothing():
    args = OPS[0].sample(seed=1)
    shifted = args["attributes"] + jnp.array([5.0, -2.0])
    want = ripo_attention(**args)
    near(ripo_attention(**args | {"attributes": shifted}), want, 1e-4)
    assert abs(ripo_attention(**args | {"attributes": -args["attributes"]}) - want).max() > 1e-3


def test_embeddings_of_a_transposed_melody_are_turned():
    values, rates, bias = draws((2, 5), (3,), (6,))
    at = lambda p: (music_embedding(p, rates, bias) - bias).reshape(2, 5, 3, 2)
    sin, cos = jnp.sin(4.0 * rates), jnp.cos(4.0 * rates)
    s, c = at(values)[..., 0], at(values)[..., 1]
    near(at(values + 4.0), jnp.stack([s * cos + c * sin, c * cos - s * sin], -1), 1e-4)
