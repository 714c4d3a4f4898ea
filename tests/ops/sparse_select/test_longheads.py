"""LongHeads: its oracle, which chunks are always there, distances, heads that differ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.positions import rotary
from attnjax.ops.sparse_select import (
    empty_cache,
    longheads,
    longheads_chunks,
    longheads_step,
)
from tests.helpers import draw, near, pairs_of, qkv, run
from tests.ops.plain import kv, softmax

B, T, N, K, H = 1, 23, 4, 2, 8


def turn(x, place, base=10000.0):
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * place * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def longheads_oracle(q, k, v, chunk, top_k):
    (B, T, N, H), out = q.shape, np.zeros(q.shape)
    place = [t % chunk for t in range(T)]
    for b, n in np.ndindex(B, N):
        queries, keys, values = q[b, :, n], k[b, :, kv(q, k, n)], v[b, :, kv(q, k, n)]
        weigh = lambda x, keys: softmax(np.array([x @ y for y in keys]) / np.sqrt(H))
        summary = []
        for start in range(0, T, chunk):
            at = range(start, min(start + chunk, T))
            near = [turn(keys[j], place[j]) for j in at]
            read = [weigh(turn(queries[i], place[i]), near) @ values[list(at)] for i in at]
            summary.append(weigh(np.mean(read, 0), near) @ np.array(near))
        for t in range(T):
            u = t // chunk
            seen = {0, max(u - 1, 0), u}
            likes = {c: queries[t] @ summary[c] for c in range(u) if c not in seen}
            best = sorted(likes, key=likes.get, reverse=True)[: top_k - len(seen)]
            seen = sorted([*seen, *best])
            js = [c * chunk + x for c in seen for x in range(chunk) if c * chunk + x <= t]
            query = turn(queries[t], (len(seen) - 1) * chunk + place[t])
            w = weigh(query, [turn(keys[j], seen.index(j // chunk) * chunk + place[j]) for j in js])
            out[b, t, n] = w @ values[js]
    return out


def test_first_previous_and_current_chunk_and_as_many_as_asked_for():
    chosen = run(longheads_chunks, *qkv(B, T, N, H, K=K), chunk=2, top_k=5)
    pairs = pairs_of(chosen)[0]
    for t, n in np.ndindex(T, N):
        u, got = t // 2, {c for i, c in pairs[n] if i == t}
        assert got >= {0, max(u - 1, 0), u} and max(got) == u
        assert len(got) == min(u + 1, 5)
    assert len({frozenset(x) for x in pairs}) == N, "heads choose for themselves"


def test_no_distance_is_beyond_what_top_k_chunks_have():
    """A key at the far end of the text is turned as if it stood top_k - 1 chunks away."""
    k = jnp.zeros((1, T, 1, H)).at[:, 0].set(draw(H))  # chunk 0 is always seen
    q, v = draw(1, T, 1, H, seed=1), jnp.zeros((1, T, 1, H)).at[:, 0, 0, 0].set(1.0)
    got = run(longheads, q, k, v, chunk=2, top_k=3)[0, -1, 0, 0]
    query = rotary(q[:, -1:], jnp.array([2 * 2 + (T - 1) % 2]))[0, 0, 0]
    e = jnp.exp(query @ k[0, 0, 0] / jnp.sqrt(H))
    near(got, e / (e + 4.0))  # keys 1, 20, 21, 22 have score 0


@pytest.mark.parametrize(("chunk", "top_k"), [(3, 3), (4, 4)])
def test_decoding_token_by_token_is_the_whole_run(chunk, top_k):
    q, k, v = qkv(B, T, N, H, K=K)
    step = jax.jit(functools.partial(longheads_step, top_k=top_k))
    cache, outs = empty_cache(q, k, room=24, chunk=chunk), []
    for t in range(T):
        out, cache = step(*(x[:, t : t + 1] for x in (q, k, v)), cache)
        outs.append(out)
    near(jnp.concatenate(outs, axis=1), run(longheads, q, k, v, chunk=chunk, top_k=top_k))
    assert step._cache_size() == 1 and cache.count == T
    with pytest.raises(ValueError, match="room: 23; expected a multiple of chunk"):
        empty_cache(q, k, room=23, chunk=chunk)


@pytest.mark.parametrize("given", [{"top_k": 2}, {"chunk": 0}, {"v": jnp.zeros((B, T, K, 3))}])
def test_what_longheads_refuses(given):
    q, k, v = qkv(B, T, N, H, K=K)
    with pytest.raises(ValueError, match="expected at least 1, at least 3, H = 8"):
        longheads(q, k, **({"v": v} | given))
