"""Softplus attention: its oracles, rows by hand, sums of weights, exact zeros."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.softmax_core import softplus_attention, softplus_reweighted
from tests.helpers import exact, near, qkv, weights_of
from tests.ops.plain import blend, causal, kv, unit, weights

B, T, N, H = 2, 9, 4, 8


def softplus_attention_oracle(q, k, v, allowed=None):
    return blend(_lssa(q, k, allowed), v)


def softplus_reweighted_oracle(q, k, v, power, allowed=None):
    T, S = q.shape[1], k.shape[1]
    seen = causal(T, S) if allowed is None else allowed
    n = np.broadcast_to(seen, (len(q), q.shape[2], T, S)).sum(-1, keepdims=True)
    level = np.where(np.arange(T) < 3, 0, 1)[:, None]
    sharp = np.maximum(n * _lssa(q, k, allowed) - level, 0) ** power
    total = sharp.sum(-1, keepdims=True)
    return blend(sharp / np.where(total > 0, total, 1), v)


def _lssa(q, k, allowed):
    (_, T, _, H), S = q.shape, k.shape[1]
    q, k = unit(q), unit(k)

    def normalized(cosines):
        a = np.log1p(np.exp(np.log(H) * np.log(len(cosines)) * cosines))
        return a / a.sum()

    dot = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    return weights(q, k, causal(T, S) if allowed is None else allowed, normalized, dot)


@pytest.mark.parametrize(
    ("power", "want"), [(3, (1, 1.2723, 1.8213, 2.5)), (15, (1, 1.0073, 1.2276, 2.5))]
)
def test_four_tokens_by_hand(power, want):
    """Lengths do not matter, and the first three rows have level 0, the last 1: .5 0 0 .5."""
    q = np.array([[2, 0], [2, 0], [2, 0], [2, 0]])
    k = np.array([[3, 0], [0, 1], [1, 1], [1, 0]])
    q, k, v = (jnp.asarray(x.reshape(1, 4, 1, -1), float) for x in (q, k, np.arange(1, 5)))
    near(softplus_reweighted(q, k, v, power=power)[0, :, 0, 0], want, 5e-5)
    near(softplus_reweighted(7 * q, k / 3, v, power=power)[0, :, 0, 0], want, 5e-5)


def test_the_power_is_fifteen():
    q, k, v = qkv(B, T, N, H)
    near(softplus_reweighted(q, k, v), softplus_reweighted_oracle(exact(q), exact(k), exact(v), 15))


def test_softplus_weights_sum_to_one_and_sharpen_to_exact_zeros():
    q, k, _ = qkv(B, T, N, H)
    seen = np.tril(np.ones((T, T), bool))
    plain = weights_of(softplus_attention, q, k)
    near(plain.sum(-1), np.ones((B, N, T)))
    assert (plain[..., seen] > 0).all()
    sharp = weights_of(softplus_reweighted, q, k, power=3)
    near(sharp.sum(-1), np.ones((B, N, T)))
    level = (plain * seen.sum(-1)[:, None])[:, :, 3:]
    late = sharp[:, :, 3:]
    assert (late[level < 0.999] == 0).all() and (late[level > 1.001] > 0).all()
    assert (sharp[:, :, :3][..., seen[:3]] > 0).all()
    assert np.isfinite(weights_of(softplus_reweighted, 1e4 * q, k, power=3)).all()


def test_softplus_reweighted_refuses_a_negative_number_of_first_queries():
    with pytest.raises(ValueError, match="first: -1; expected at least 0"):
        softplus_reweighted(*qkv(B, T, N, H), first=-1)
