"""Log-normal attention: its oracles; matched moments; the causal form."""

import jax
import numpy as np

from attnjax import features, linear_attend, normalizers
from attnjax.core.pairwise import attend as engine
from attnjax.ops.linear_recurrent import (
    log_normal_attention,
    log_normal_attention_full,
    match_moments,
)
from tests.helpers import draws, near, qkv, weights_of
from tests.ops.plain import of_exponents, weighted

B, T, N, H = 2, 9, 4, 8


def log_normal_attention_oracle(q, k, v, alpha, beta):
    return weighted(alpha * q, beta * k, v, of_exponents, causal=True)


def log_normal_attention_full_oracle(q, k, v, alpha, beta):
    return weighted(alpha * q, beta * k, v, of_exponents, causal=False)


def moments(op, std, H=64, S=512):
    """The variance of logarithms of weights, for Gaussian q and k of one deviation."""
    q, k = draws((1, S, 1, H), (1, S, 1, H), seed=int(10 * std), scale=std)
    log_weights = np.log(weights_of(op, q, k))
    return log_weights.var(axis=-1).mean(), log_weights


def lln(q, k, v):
    return log_normal_attention_full(q, k, v, *match_moments(q, k))


def test_matched_moments_give_weights_that_vary_as_those_of_softmax():
    elu = lambda q, k, v: linear_attend(
        features.elu1(q), features.elu1(k), v, normalize=normalizers.divide, block=None
    )
    for std in (1.0, 1.2, 1.4):
        soft, _ = moments(engine.attend, std)
        ours, logs = moments(lln, std)
        near(soft, std**4, 0.1)
        assert 0.8 < ours / soft < 1.1
        assert moments(elu, std)[0] < 0.2 * soft
        centered = logs - logs.mean(-1, keepdims=True)  # nearly symmetric
        assert abs((centered**3).mean() / (centered**2).mean() ** 1.5) < 1.0


def test_moments_are_solved_for_and_have_no_gradient():
    q, k, _ = qkv(B, T, N, H, scale=1.5)
    for axis, shape in (((0, 1, 2, 3), (1, 1, 1, 1)), ((1, 2, 3), (B, 1, 1, 1))):
        alpha, beta = match_moments(q, 2.0 * k, axis=axis)
        assert alpha.shape == beta.shape == shape
        deviation = lambda x, axis=axis: x.std(axis, keepdims=True, ddof=1)
        s = alpha * deviation(q)
        near(s, 2 * beta * deviation(k))
        products = (2 * deviation(q) * deviation(k)) ** 2
        near(2 * 0.14855178 * s**2 - 0.35487039, products, 1e-4)
    assert match_moments(q, k)[0].shape == (1, 1, 1, 1)
    grad = jax.grad(lambda q: sum(x.sum() for x in match_moments(q, k)))(q)
    assert not np.any(grad)
    assert all(np.isfinite(x).all() for x in match_moments(0 * q, k))


def test_causal_log_normal_attention_ends_where_the_full_one_is():
    q, k, v = qkv(B, T, N, H)
    causal = log_normal_attention(q, k, v, 1.5, 0.5)
    near(causal[:, -1], log_normal_attention_full(q, k, v, 1.5, 0.5)[:, -1])
