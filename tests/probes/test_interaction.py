"""Interaction: gauges that it does not see, its rank, the nearest matrix of a rank."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attention_scores
from attnjax.probes.interaction import centered, double_centered, interaction
from tests.helpers import draw, draws, near, qkv


def test_numbers_of_queries_and_keys_are_not_seen():
    s, of_query, of_key = draws((2, 7, 9), (2, 7, 1), (2, 1, 9))
    near(double_centered(s + of_query + of_key), double_centered(s))
    near(double_centered(s).sum(-1), np.zeros((2, 7)))
    near(double_centered(s).sum(-2), np.zeros((2, 9)))


def test_of_dot_products_it_has_rank_h_and_is_that_of_centered_vectors():
    q, k, _ = qkv(2, 12, 4, 3, S=10, K=2)
    scores = attention_scores(q, k) + draw(12, 1)[None, None] + draw(10, seed=1)[None, None, None]
    near(double_centered(scores), attention_scores(*centered(q, k)))
    whole, values = interaction(scores, 3)
    near(whole, double_centered(scores), 1e-4)
    assert (values[..., 3:] < 1e-4).all() and (values[..., 2] > 0.1).all()


def test_the_error_is_what_is_behind_the_rank():
    s = np.asarray(draw(8, 6))
    c = s - s.mean(1, keepdims=True) - s.mean(0) + s.mean()
    for rank in range(7):
        near_c, values = interaction(jnp.asarray(s), rank)
        near(((near_c - c) ** 2).sum(), (values[rank:] ** 2).sum(), 1e-4)
    with pytest.raises(ValueError, match="rank: -1; expected at least 0"):
        interaction(jnp.asarray(s), -1)
