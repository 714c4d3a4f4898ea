"""Round attention: its oracles, which rounds are chosen, masked is gathered."""

import jax.numpy as jnp
import numpy as np

from attnjax import attend, decode, masks
from attnjax.ops.kv_decode import chosen_rounds, round_attention, round_mass
from tests.helpers import near, qkv, run
from tests.ops.plain import blend, weights

B, T, S, N, K, H = 2, 3, 14, 4, 2, 8
ROUNDS = np.repeat([0, 1, 2, 3], [2, 5, 4, 3])


def to_end(T, S):
    return np.array([[j <= S - T + i for j in range(S)] for i in range(T)])


def round_mass_oracle(queries, keys, rounds, count):
    w = weights(queries, keys, to_end(queries.shape[1], keys.shape[1]))
    out = np.zeros((len(queries), count))
    for b, j in np.ndindex(*rounds.shape):
        out[b, rounds[b, j]] += w[b, :, :, j].mean()
    return out


def round_attention_oracle(q, k, v, rounds, chosen):
    (B, T), S = q.shape[:2], k.shape[1]
    seen = np.zeros((B, 1, T, S), bool)
    for b, j in np.ndindex(B, S):
        seen[b, 0, :, j] = to_end(T, S)[:, j] & chosen[b, rounds[b, j]]
    return blend(weights(q, k, seen), v)


def test_the_fewest_rounds_that_reach_the_share():
    mass = jnp.asarray([[0.3, 0.2, 0.05, 0.15, 0.1, 0.2]])
    took = lambda share: np.flatnonzero(run(chosen_rounds, mass, share=share)[0]).tolist()
    assert took(0.3) == [0, 1, 5] and took(0.5) == [0, 1, 3, 5]
    assert took(0.9) == [0, 1, 3, 4, 5] and took(1.0) == [*range(6)]
    near(round_mass(*qkv(1, T, N, H, S=S)[:2], jnp.asarray(ROUNDS)[None], count=4).sum(1), 1.0)


def test_masked_is_what_a_cache_of_chosen_rounds_gives():
    """Also when rounds are read as the best of a cache's slots."""
    q, k, v = qkv(B, T, N, H, S=S, K=K)
    rounds = jnp.broadcast_to(jnp.asarray(ROUNDS), (B, S))
    chosen = jnp.asarray([[True, False, True, True]] * B)
    out = run(round_attention, q, k, v, rounds, chosen)
    held = np.flatnonzero(ROUNDS != 1)
    near(out, attend(q, k[:, held], v[:, held], mask=masks.causal_to_end))
    cache = decode.Dense.empty(B, S, K, H).append(k[:, : S - T], v[:, : S - T])
    cache = cache.append(k[:, S - T :], v[:, S - T :])
    scores = jnp.where(ROUNDS != 1, jnp.inf, -jnp.inf)[None, :, None] + jnp.zeros((B, 1, 1))
    near(decode.attend_top(q, cache, scores, held.size), out)
