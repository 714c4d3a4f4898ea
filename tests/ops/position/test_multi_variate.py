"""Multi-variate parallel attention: its oracle, time, channels the other way round, other heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.position import multi_variate_parallel_attention
from attnjax.ops.position.multi_variate import OPS, Places
from tests.helpers import near
from tests.ops.plain import blend, kv, weights


def multi_variate_parallel_attention_oracle(q, k, v, places, channels, window):
    p, C, last = places, channels, q.shape[1] // channels - 1
    allowed = np.array([[j // C <= i // C for j in range(len(k[0]))] for i in range(len(q[0]))])

    def score(b, n, i, j):
        x, g = q[b, i, n], kv(q, k, n)
        lag, apart = i // C - j // C, abs(i % C - j % C)
        total = (x + p.v[g]) @ p.time[lag, g] + (x + p.z[g]) @ p.channel[apart, g]
        if lag <= window or i // C == last:
            total += (x + p.u[g]) @ k[b, j, g]
        return total / np.sqrt(q.shape[-1])

    return blend(weights(q, k, allowed, logit=score), v)


ARGS = OPS[0].sample(seed=1, T=12)
run = jax.jit(
    lambda q, k, v, places: multi_variate_parallel_attention(q, k, v, places, channels=3, window=1)
)


def test_time_is_causal_and_channels_may_be_reversed_but_not_permuted():
    q, k, v, places = (ARGS[n] for n in ("q", "k", "v", "places"))
    out = run(q, k, v, places)
    later = run(q, k, v.at[:, 9:].add(1.0), places)
    near(later[:, :9], out[:, :9])
    assert (abs(later - out)[:, 9:].max((0, 2, 3)) > 1e-3).all()  # all channels of a time

    def moved(order):
        index = (3 * np.arange(4)[:, None] + np.array(order)).reshape(-1)
        return run(q[:, index], k[:, index], v[:, index], places), out[:, index]

    near(*moved([2, 1, 0]), 1e-4)
    got, want = moved([1, 0, 2])
    assert abs(got - want).max() > 1e-3


def test_heads_that_share_a_key_share_its_tables():
    q, k, v, places = (ARGS[n] for n in ("q", "k", "v", "places"))
    many = Places(*(jnp.repeat(x, 2, axis=x.ndim - 2) for x in places))
    near(run(q, *(jnp.repeat(x, 2, axis=2) for x in (k, v)), many), run(q, k, v, places))


def test_more_channels_than_there_are():
    for channels in (4, 6):
        with pytest.raises(ValueError, match=f"{channels} channels, T = 9 tokens, X = 24, Y = 4"):
            OPS[0].fn(**OPS[0].sample(seed=1, draw={"channels": channels}))
