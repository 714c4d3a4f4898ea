"""Magnifier: its oracle, who sees which details, how much a query looks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attention_weights, masks
from attnjax.ops.sparse_select import looks_at, magnifier_attention
from tests.helpers import draws, near, qkv, run
from tests.ops.plain import blend, causal, weights

B, T, N, K, H, c, m = 2, 9, 4, 2, 8, 3, 2


def magnifier_attention_oracle(
    q, k, v, fine_k, fine_v, looks, start=0, threshold=96 / 255, allowed=None
):
    (B, T, N, _), F = q.shape, fine_k.shape[1]
    allowed = causal(T, T) if allowed is None else allowed
    seen = np.zeros((B, N, T, T + F), bool)
    seen[..., :T] = allowed
    for f in range(F):
        s = f // (F // looks.shape[2])
        for b, i in np.ndindex(B, T):
            g = looks[b, i]
            if g.max() > g.min() and (g[s] - g.min()) / (g.max() - g.min()) > threshold:
                seen[b, :, i, T + f] = start + s < T and seen[b, :, i, min(start + s, T - 1)]
    join = lambda x, y: np.concatenate([x, y], axis=1)
    return blend(weights(q, join(k, fine_k), seen), join(v, fine_v))


def text_and_details():
    return *qkv(B, T, N, H, K=K), *draws((B, c * m, K, H), (B, c * m, K, H), seed=1)


def test_a_detail_reaches_those_who_looked_at_its_token_and_come_after_it():
    q, k, v, fine_k, fine_v = text_and_details()
    looks = jnp.zeros((B, T, c)).at[:, [0, 4, 8], 1].set(0.7)
    looks = looks.at[:, 6:8].set(jnp.array([[0.2, 0.8, 0.42], [0.2, 0.8, 0.43]]))  # 0.37, 0.38
    op = functools.partial(run, magnifier_attention, start=2)
    before = op(q, k, v, fine_k, fine_v, looks)
    for detail, reached in ((3, [4, 6, 7, 8]), (5, [7])):
        moved = np.abs(op(q, k, v, fine_k, fine_v.at[:, detail].add(1.0), looks) - before)
        assert (np.flatnonzero(moved.max((0, 2, 3))) == reached).all()
    alone = op(q, k, v, fine_k, fine_v, looks.at[:, 6].set(0.5))
    assert (np.flatnonzero(np.abs(alone - before).max((0, 2, 3))) == [6]).all()


def test_later_tokens_change_nothing_before_them():
    q, k, v, fine_k, fine_v = text_and_details()
    looks, other = draws((B, T, c), (B, T, c), seed=2)
    op = lambda q, k, v, looks: run(magnifier_attention, q, k, v, fine_k, fine_v, looks, start=1)
    later = [x.at[:, 5:].add(1.0) for x in (q, k, v)]
    got = op(q, k, v, looks)
    near(op(*later, looks.at[:, 5:].set(other[:, 5:]))[:, :5], got[:, :5], 1e-6)
    slopes = jax.grad(lambda *x: jnp.sin(op(*x))[:, :5].sum(), argnums=(0, 1, 2))(q, k, v, looks)
    assert not any(np.any(x[:, 5:]) for x in slopes) and all(np.any(x[:, :5]) for x in slopes)


def test_looks_are_weights_of_all_heads():
    q, k, _ = qkv(B, T, N, H, K=K)
    got = run(looks_at, q, k, count=c, start=2)
    near(got, attention_weights(q, k, mask=masks.causal).sum(1)[..., 2 : 2 + c])


def test_sizes_that_do_not_fit():
    *args, fine_k, fine_v = text_and_details()
    with pytest.raises(ValueError, match="fine_k: 6 details, expected a multiple of looks' c = 4"):
        magnifier_attention(*args, fine_k, fine_v, jnp.zeros((B, T, 4)))
    with pytest.raises(ValueError, match=r"start, count: 7, 3; expected a part of S = 9 tokens"):
        looks_at(*args[:2], count=3, start=7)
