"""Dynamic convolution attention: its oracle, the prior, weights that go along with a shift."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.position import beta_binomial, dynamic_convolution_attention
from attnjax.ops.position.dynamic_convolution import OPS
from tests.helpers import near, run
from tests.ops.plain import softmax


def pmf(n, alpha=0.1, beta=0.9):
    """By the mean of binomials whose chance is beta distributed: ratios of rising products."""
    rise = lambda x, k: np.prod([x + i for i in range(k)])
    choose = [np.prod([(n - i) / (i + 1) for i in range(k)]) for k in range(n + 1)]
    parts = [rise(alpha, k) * rise(beta, n - k) / rise(alpha + beta, n) for k in range(n + 1)]
    return np.array(choose) * parts


def dynamic_convolution_attention_oracle(q, v, weights, ahead=10, lengths=None):
    (B, T, _), (_, S, D) = q.shape, v.shape
    w, P, out = weights, pmf(ahead), np.zeros((B, T, D))
    width = len(w.static)
    for b in range(B):
        a = np.eye(S)[0]
        for i in range(T):
            hidden = np.tanh(q[b, i] @ w.query.w + w.query.b)
            G = np.einsum("a,awm->wm", hidden, w.dynamic)
            at = lambda j, a=a: a[j] if 0 <= j < S else 0.0
            score = np.zeros(S)
            for j in range(S):
                seen = np.array([at(j + x - width // 2) for x in range(width)])
                inner = seen @ w.static @ w.of_static + seen @ G @ w.of_dynamic.w + w.of_dynamic.b
                moved = sum(P[k] * at(j - k) for k in range(ahead + 1))
                score[j] = w.score @ np.tanh(inner) + np.log(max(moved, 1e-6))
            a = softmax(score)
            if lengths is not None:
                a = a * (np.arange(S) < lengths[b])
            out[b, i] = a @ v[b]
    return out


def test_the_prior_is_a_distribution_that_moves_ahead():
    P = beta_binomial(10)
    near(P, pmf(10))
    near([P.sum(), P @ np.arange(11)], [1.0, 1.0])


def test_padding_has_no_weight():
    args = OPS[0].sample(seed=1, S=12)
    q, w = args["q"], args["weights"]
    a = run(dynamic_convolution_attention, q, jnp.eye(12)[None].repeat(2, 0), w)
    lengths = jnp.asarray([12, 5])
    cut = dynamic_convolution_attention(q, jnp.eye(12)[None].repeat(2, 0), w, lengths=lengths)
    near(cut[0], a[0])
    assert not np.any(cut[1, :, 5:]) and (np.asarray(cut[1, :, :5]) > 0).all()


def test_a_text_may_be_longer_than_it_is_read():
    """Places far ahead change little: no weight is on them, and filters do not reach them."""
    args = OPS[0].sample(seed=1, T=2)
    q, w = args["q"], args["weights"]
    read = lambda S: run(dynamic_convolution_attention, q, jnp.eye(S)[None].repeat(2, 0), w)
    near(read(30)[..., :20], read(60)[..., :20], 1e-3)
    assert read(60)[..., 30:].max() < 1e-5


def test_filters_of_even_width():
    args = OPS[0].sample(w=4)
    with pytest.raises(ValueError, match="filters of width 4; expected an odd number"):
        dynamic_convolution_attention(**args)
