"""Monotonic attention: the oracle walks key by key; walks that never go back; chunks."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.softmax_core import (
    monotonic_alignment,
    monotonic_attention,
    monotonic_chunkwise_attention,
)
from tests.helpers import draw, draws, near, qkv, run, value_and_pull, weights_of
from tests.ops.plain import blend, kv, sigmoid, softmax, visible

B, T, S, N, K, H = 2, 7, 11, 4, 2, 8


def walks(q, k, bias, allowed):
    (B, T, N, H), S = q.shape, k.shape[1]
    a = np.zeros((B, N, T, S))
    for b, n in np.ndindex(B, N):
        before = np.eye(S)[0]
        for i in range(T):
            ok, arrived = visible(allowed, b, n, i, S), 0.0
            for j in range(S):
                arrived += before[j]  # who has passed all keys from theirs on, and starts here
                score = q[b, i, n] @ k[b, j, kv(q, k, n)] / np.sqrt(H) + bias[n]
                a[b, n, i, j] = arrived * sigmoid(score) if j in ok else 0.0
                arrived -= a[b, n, i, j]
            before = a[b, n, i]
    return a


def monotonic_attention_oracle(q, k, v, bias, allowed=None):
    return blend(walks(q, k, bias, allowed), v)


def monotonic_chunkwise_attention_oracle(q, k, v, near_q, near_k, bias, chunk=4, allowed=None):
    stops, H = walks(q, k, bias, allowed), q.shape[-1]
    w = np.zeros_like(stops)
    for b, n, i, end in np.ndindex(stops.shape):
        ok = visible(allowed, b, n, i, stops.shape[-1])
        js = [j for j in range(max(0, end - chunk + 1), end + 1) if j in ok]
        if js and stops[b, n, i, end]:
            g = kv(q, k, n)
            u = np.array([near_q[b, i, n] @ near_k[b, j, g] / np.sqrt(H) for j in js])
            w[b, n, i, js] += stops[b, n, i, end] * softmax(u)
    return blend(w, v)


def test_later_queries_stop_later_and_none_twice():
    q, k, _ = qkv(B, T, N, H, S=S, K=K)
    a = np.asarray(run(monotonic_alignment, q, k, draw(N)))
    assert (a >= 0).all() and (a.sum(-1) <= 1 + 1e-6).all()
    not_yet = 1 - np.cumsum(a, axis=-1)  # the chance to be beyond a key
    assert (np.diff(not_yet, axis=2) >= -1e-6).all()


def test_sure_coins_follow_the_path_that_they_say():
    """Each query stops at the next key that has its kind, or walks off."""
    kinds, wanted = [0, 1, 0, 2, 1, 1, 2, 0], [0, 1, 1, 2, 0, 1]
    k = jnp.eye(3)[jnp.array(kinds)][None, :, None]
    q = 400.0 * jnp.eye(3)[jnp.array(wanted)][None, :, None]
    a = run(monotonic_alignment, q, k, jnp.full(1, -100.0))[0, 0]
    want = np.zeros((6, 8))
    for i, j in enumerate((0, 1, 1, 3, 7)):  # a query may stop where the last one did
        want[i, j] = 1
    near(a, want)


def test_a_chunk_is_a_softmax_over_the_keys_before_a_stop():
    k, q = jnp.zeros((1, 8, 1, 2)).at[0, 5, 0, 0].set(1.0), jnp.full((1, 1, 1, 2), 400.0)
    near_q, near_k = draws((1, 1, 1, 2), (1, 8, 1, 2))
    of = lambda q, k, v, n: monotonic_chunkwise_attention(
        q, k, v, near_q, near_k, jnp.full(1, -100.0), chunk=n
    )
    chunk = lambda n: weights_of(functools.partial(run, of, n=n), q, k)[0, 0, 0]
    u = np.asarray(near_k[0, :, 0] @ near_q[0, 0, 0]) / np.sqrt(2)
    near(chunk(3)[3:6], softmax(u[3:6]))
    near(chunk(99)[:6], softmax(u[:6]))
    assert (chunk(3)[:3] == 0).all() and (chunk(3)[6:] == 0).all()


def test_large_scores_of_chunks_do_not_overflow():
    q, k, v = qkv(1, 5, 2, 4)
    f = lambda u: monotonic_chunkwise_attention(q, k, v, u, 300 * k, jnp.zeros(2))
    assert all(np.isfinite(x).all() for x in value_and_pull(f)(300 * q))


def test_padding_is_walked_past():
    q, k, v = qkv(1, T, 2, H, S=S)
    short = run(monotonic_attention, q, k[:, :6], v[:, :6], jnp.zeros(2))
    near(monotonic_attention(q, k, v, jnp.zeros(2), mask=masks.lengths(None, [6])), short)


def test_a_chunk_of_no_keys():
    q, k, v = qkv(1, 2, 1, 2)
    with pytest.raises(ValueError, match="chunk: 0; expected at least 1"):
        monotonic_chunkwise_attention(q, k, v, q, k, jnp.zeros(1), chunk=0)
