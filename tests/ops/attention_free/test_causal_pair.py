"""Pairs of a token and the one before it: the oracle; other ways to combine, what is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.attention_free import causal_pair, causal_pair_in_context
from tests.helpers import draw, near


def causal_pair_oracle(x, combine=np.minimum):
    out = x.copy()
    for b, t in np.ndindex(x.shape[:2]):
        if t:
            out[b, t] = combine(x[b, t], x[b, t - 1])
    return out


def causal_pair_in_context_oracle(x, combine=np.minimum):
    out = causal_pair_oracle(x, combine)
    for b, t in np.ndindex(x.shape[:2]):
        out[b, t] = (out[b, t] + sum(x[b, : t + 1]) / (t + 1)) / 2
    return out


pair = jax.jit(causal_pair, static_argnames="combine")


def _mean(now, before):
    return (now + before) / 2


@pytest.mark.parametrize(("combine", "same"), [(jnp.maximum, np.maximum), (_mean, _mean)])
def test_other_ways_to_combine(combine, same):
    x = draw(2, 6, 3)
    near(pair(x, combine=combine), causal_pair_oracle(np.asarray(x), same))


def test_equal_tokens_stay_and_a_token_reaches_the_next_alone():
    x = draw(1, 6, 3)
    same = jnp.broadcast_to(x[:, :1], x.shape)
    near(pair(same), same)
    changed = np.abs(pair(x.at[0, 2].add(-9.0)) - pair(x)).max(-1)
    assert np.nonzero(changed[0])[0].tolist() == [2, 3]


def test_a_token_reaches_all_that_come_later_through_the_average():
    x = draw(1, 6, 3)
    paired = jax.jit(causal_pair_in_context)
    changed = np.abs(paired(x.at[0, 2].add(-9.0)) - paired(x)).max(-1)
    assert np.nonzero(changed[0])[0].tolist() == [2, 3, 4, 5]
