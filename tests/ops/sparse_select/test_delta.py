"""Delta attention: its oracle, which rows move and how, that it gains, what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import block_attention, delta_attention
from tests.helpers import near, qkv
from tests.ops.plain import blend, causal_too, weights

B, T, N, K, H = 2, 13, 4, 2, 8


def delta_attention_oracle(q, k, v, sparse, gamma, dense_last, allowed=None):
    T, S = q.shape[1], k.shape[1]
    ok = causal_too(q, k, allowed)
    few_weights = weights(q, k, ok & sparse.dense(T, S))
    few, dense = blend(few_weights, v), blend(weights(q, k, ok), v)
    out = few.copy()
    for b, n, i in np.ndindex(few_weights.shape[:3]):
        g = gamma * (i // gamma)
        if g == i or i >= T - dense_last:
            out[b, i, n] = dense[b, i, n]
        elif few_weights[b, n, i].any():
            out[b, i, n] = few[b, i, n] + dense[b, g, n] - few[b, g, n]
    return out


STREAM = masks.window(2) | masks.sinks(1)


def test_delta_rows_are_dense_and_those_behind_move_as_they_did():
    q, k, v = qkv(B, T, N, H, K=K)
    dense = multi_head_attention(q, k, v, mask=masks.causal)
    few = attend(q, k, v, mask=masks.causal & STREAM)
    out = delta_attention(q, k, v, sparse=STREAM, gamma=5, dense_last=2)
    near(out[:, [0, 5, 10, 11, 12]], dense[:, [0, 5, 10, 11, 12]], 1e-6)
    moved = np.asarray(out - few)
    for i in (6, 7, 8, 9):
        near(moved[:, i], moved[:, 5])
    assert np.abs(moved[:, 5]).max() > 0.05 and np.abs(out - dense)[:, 6:10].max() > 0.05


@pytest.mark.parametrize(("T", "gamma", "last"), [(300, 16, 140), (300, 256, 300), (130, 64, 130)])
def test_the_last_queries_are_dense_as_released(T, gamma, last):
    """The last T % gamma + max(128, gamma) of them, here up to all."""
    q, k, v = qkv(1, T, 1, 4)
    out = delta_attention(q, k, v, sparse=STREAM, gamma=gamma)
    near(out, delta_attention(q, k, v, sparse=STREAM, gamma=gamma, dense_last=last), 1e-6)
    dense = multi_head_attention(q, k, v, mask=masks.causal)
    near(out[:, T - last :], dense[:, T - last :])
    paper = delta_attention(q, k, v, sparse=STREAM, gamma=gamma, dense_last=0)
    assert np.abs(paper - out)[:, T - last :].max() > 0.1
    if last < T:
        assert np.abs(out - dense)[0, T - last - gamma + 1 : T - last].max() > 0.1


IDS = np.repeat([0, 1, 2], (4, 3, 6))  # two passages and the question


def test_delta_corrects_any_sparse_attention():
    q, k, v = qkv(B, T, N, H, K=K)
    blocks = lambda q, k, v: block_attention(q, k, v, IDS)
    out = delta_attention(q, k, v, sparse=blocks, gamma=4, dense_last=0)
    few, dense = blocks(q, k, v), multi_head_attention(q, k, v, mask=masks.causal)
    near(out, few + jnp.repeat((dense - few)[:, ::4], 4, axis=1)[:, :T])
    near(out[:, 8:], dense[:, 8:])  # where the blocks are dense themselves
    assert jnp.abs(out - few).max() > 0.05


def test_delta_correction_is_nearer_to_dense_attention():
    """Where sparse attention misses what all queries look at: a value at one early place."""
    q, k, v = qkv(B, 64, N, H, K=K)
    q, k, v = 0.3 * q.at[..., 0].add(9.0), k.at[:, 2, :, 0].add(4.0), v.at[:, 2].add(5.0)
    dense = multi_head_attention(q, k, v, mask=masks.causal)
    kept = masks.window(7) | masks.sinks(1)
    few = attend(q, k, v, mask=masks.causal & kept)
    out = delta_attention(q, k, v, sparse=kept, gamma=8, dense_last=0)
    error = lambda x: float(jnp.abs(x - dense).mean())
    assert error(out) < 0.5 * error(few)


def test_delta_tells_what_does_not_fit():
    for wrong in ({"gamma": 0}, {"dense_last": -1}):
        with pytest.raises(ValueError, match="gamma, dense_last: .*; expected at least 1 and 0"):
            delta_attention(*qkv(B, T, N, H, K=K), **wrong)
