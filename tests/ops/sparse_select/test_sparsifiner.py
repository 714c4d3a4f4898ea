"""Sparsifiner: its oracle, how many keys are seen, what the predictor learns from, its rank."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attention_weights
from attnjax.core.numerics import Affine
from attnjax.ops.sparse_select import Predictor, predicted_map, sparsifiner
from attnjax.probes import numerical_rank
from tests.helpers import draws, exact, near, qkv, run, weights_of
from tests.ops.plain import blend, softmax, weights

B, T, N, K, H, C, R = 2, 12, 4, 2, 6, 3, 2


def sparsifiner_oracle(q, k, v, predictor, keep, full=1, least=(0.0, 0.0)):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    budget = int(np.ceil(keep * S))
    seen = np.zeros((B, N, T, S), bool)
    seen[:, :, :full] = True
    for b, n in np.ndindex(B, N):
        keys = predictor.down.T @ (k[b, :, n * K // N] @ predictor.k.w + predictor.k.b)
        for t in range(full, T):
            query = q[b, t, n] @ predictor.q.w + predictor.q.b
            shares, basis = softmax(keys @ query / np.sqrt(N)), np.abs(predictor.up)
            row = (basis * (basis > least[1])) @ (shares * (shares > least[0]))
            seen[b, n, t, np.argsort(-row, kind="stable")[:budget]] = True
    return blend(weights(q, k, seen), v)


def predictor(seed=3):
    w, b, x, c, down, up = draws((H, C), (C,), (H, C), (C,), (T, R), (T, R), seed=seed)
    return Predictor(Affine(w, b), Affine(x, c), down, up)


weigh = functools.partial(weights_of, functools.partial(run, sparsifiner))


def test_each_row_has_its_budget_the_first_all():
    q, k, _ = qkv(B, T, N, H, K=K)
    seen = weigh(q, k, predictor(), full=2) > 0
    assert (seen[:, :, :2].sum(-1) == T).all() and (seen[:, :, 2:].sum(-1) == 3).all()


def test_small_entries_of_both_factors_do_not_count():
    q, k, v = qkv(B, T, N, H, K=K)
    settings = {"keep": 0.5, "least": (0.45, 0.6)}
    got = run(sparsifiner, q, k, v, predictor(), **settings)
    near(got, sparsifiner_oracle(*exact((q, k, v, predictor())), **settings), 1e-4)
    assert np.abs(got - run(sparsifiner, q, k, v, predictor(), keep=0.5)).max() > 1e-3


def test_the_predictor_learns_only_from_its_own_loss():
    q, k, v = qkv(B, T, N, H, K=K)
    task = lambda p: jnp.sin(sparsifiner(q, k, v, p)).sum()
    assert not any(np.any(x) for x in jax.tree.leaves(run(jax.grad(task), predictor())))

    def loss(p):
        true = attention_weights(q, k).transpose(0, 2, 1, 3)
        return jnp.square(predicted_map(q, k, p) - true).mean()

    slopes = jax.tree.leaves(run(jax.grad(loss), predictor()))
    assert all(np.abs(x).max() > 1e-6 for x in slopes)


def test_the_predicted_map_has_a_low_rank_and_the_map_that_is_used_has_not():
    q, k, _ = qkv(B, T, N, H, K=K)
    assert (numerical_rank(predicted_map(q, k, predictor()).transpose(0, 2, 1, 3)) <= R).all()
    used = weigh(q, k, predictor())
    assert (numerical_rank(jnp.asarray(used)) > R).all()
    near(used.sum(-1), np.ones((B, N, T)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": 0.0}, r"keep: 0.0; expected a share in \(0, 1\]"),
        ({"full": -1}, "full: -1; expected at least 0"),
        ({"predictor": predictor()._replace(up=jnp.ones((5, R)))}, "12 and 5 tokens; expected S"),
    ],
)
def test_what_sparsifiner_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        sparsifiner(*qkv(B, T, N, H, K=K), **({"predictor": predictor()} | given))
