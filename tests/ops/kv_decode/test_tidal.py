"""Keys that another layer chose: the oracle; how many are seen, and whose."""

import functools

import numpy as np

from attnjax import masks
from attnjax.ops.kv_decode import tidal_attention
from tests.helpers import draws, qkv, run, weights_of
from tests.ops.plain import blend, causal, visible, weights

attention = functools.partial(run, tidal_attention)


def top_tokens(p, r, keep, allowed):
    """(B,N,T,S): the keys that each query sees."""
    (B, T, N, _), (S, K) = p.shape, r.shape[1:3]
    seen = np.zeros((B, N, T, S), bool)
    for b, n, i in np.ndindex(B, N, T):
        score = {j: p[b, i, n] @ r[b, j, n * K // N] for j in visible(allowed, b, n, i, S)}
        seen[b, n, i, sorted(score, key=score.get, reverse=True)[:keep]] = True
    return seen


def tidal_attention_oracle(q, k, v, chooser_q, chooser_k, keep, allowed=None):
    if allowed is None:
        allowed = causal(q.shape[1], k.shape[1])
    p, r = np.nan_to_num(chooser_q), np.nan_to_num(chooser_k)
    return blend(weights(q, k, top_tokens(p, r, keep, allowed)), v)


def test_each_query_sees_as_many_keys_as_are_kept_and_those_of_the_choosers():
    q, k, _ = qkv(2, 9, 4, 8, K=2)
    p, r = draws((2, 9, 4, 3), (2, 9, 2, 3), seed=5)
    seen = weights_of(attention, q, k, p, r, keep=4) > 0
    assert (seen.sum(-1) == np.minimum(np.arange(9) + 1, 4)).all()
    assert (seen == top_tokens(np.asarray(p), np.asarray(r), 4, causal(9, 9))).all()
    other = weights_of(attention, q[::-1], k[::-1], p, r, keep=4) > 0
    assert (other == seen).all()


def test_one_step_of_decoding_equals_the_last_row():
    (q, k, v), (p, r) = qkv(2, 9, 4, 8, K=2), draws((2, 9, 4, 3), (2, 9, 2, 3), seed=5)
    whole = attention(q, k, v, p, r, keep=4)
    step = attention(q[:, -1:], k, v, p[:, -1:], r, keep=4, mask=masks.everything)
    np.testing.assert_allclose(step, whole[:, -1:], atol=1e-5)


def test_what_comes_later_chooses_nothing():
    (q, k, v), (p, r) = qkv(2, 9, 4, 8, K=2), draws((2, 9, 4, 3), (2, 9, 2, 3), seed=5)
    later = [x.at[:, 5:].multiply(-1) for x in (p, r)]
    before, after = (attention(q, k, v, *c, keep=2) for c in ((p, r), later))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before - after).max() > 0.01
