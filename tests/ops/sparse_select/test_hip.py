"""HiP: its oracle, the budget, what is always seen, a peak that is found."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.sparse_select import hip_attention, hip_blocks
from tests.helpers import pairs_of, qkv, run
from tests.ops.plain import blend, kv, weights

B, T, N, K, H = 2, 37, 4, 2, 8


def found(queries, keys, u, top_k, block_q, block_k, window, sinks):
    """The keys that block u of the queries of a head searches for and finds."""
    T = len(queries)
    until = min((u + 1) * block_q, T) - window
    n, M = -(-max(until - sinks, 0) // block_k), -(-top_k // block_k)
    tokens = lambda b: range(sinks + b * block_k, min(sinks + (b + 1) * block_k, T))
    if n <= M:
        return {j for b in range(n) for j in tokens(b)}
    spans = [(i * n // M, (i + 1) * n // M) for i in range(M)]
    while any(end - start > 1 for start, end in spans):
        halves = []
        for start, end in spans:
            cut = start + (end - start) // 2
            halves += [(a, b) for a, b in ((start, cut), (cut, end)) if b > a]

        def score(span):
            rows = range(u * block_q, min((u + 1) * block_q, T), 2)
            js = tokens(span[0] + (span[1] - span[0]) // 2)
            pairs = [queries[i] @ keys[j] for i in rows for j in js if j <= i - window]
            return max(pairs, default=-np.inf)

        spans = sorted(halves, key=score, reverse=True)[:M]
    return {j for start, _ in spans for j in tokens(start)}


def hip_attention_oracle(q, k, v, top_k, block_q, block_k, window, sinks):
    (B, T, N, _), S = q.shape, k.shape[1]
    seen = np.zeros((B, N, T, S), bool)
    for b, n, u in np.ndindex(B, N, -(-T // block_q)):
        of_head = q[b, :, n], k[b, :, kv(q, k, n)]
        chosen = found(*of_head, u, top_k, block_q, block_k, window, sinks)
        for i in range(u * block_q, min((u + 1) * block_q, T)):
            near = {j for j in range(S) if j < sinks or i - j < window}
            seen[b, n, i, [j for j in chosen | near if j <= i]] = True
    return blend(weights(q, k, seen), v)


SIZES = {"top_k": 6, "block_q": 4, "block_k": 2, "window": 5, "sinks": 2}


def test_blocks_found_are_the_oracles_and_within_the_budget():
    q, k, _ = qkv(B, T, N, H, K=K)
    got = pairs_of(run(hip_blocks, q, k, **SIZES))
    for b, n, u in np.ndindex(B, N, -(-T // 4)):
        keys = found(q[b, :, n], k[b, :, kv(q, k, n)], u, **SIZES)
        assert {c for i, c in got[b][n] if i == u} == {j // 2 for j in keys}
        assert len(keys) <= 6


def test_a_peak_that_every_middle_looks_up_to_is_found():
    place = jnp.arange(T, dtype=float)
    for peak in (3, 11, 20):
        k = jnp.stack([place, -((place - peak) ** 2)], -1)[None, :, None]
        q = jnp.zeros((1, T, 1, 2)).at[..., 1].set(1.0)
        last = {c for i, c in pairs_of(run(hip_blocks, q, k, **SIZES))[0][0] if i == 9}
        assert peak // 2 in last


def test_sinks_and_the_window_are_always_seen():
    q, k, _ = qkv(1, T, 1, H)
    v = jnp.eye(T)[None, :, None]
    seen = np.asarray(run(hip_attention, q, k, v, **SIZES))[0, :, 0] > 0
    i, j = np.indices((T, T))
    assert seen[(j <= i) & ((j < 2) | (i - j < 5))].all() and not seen[j > i].any()
    assert (seen.sum(-1) <= 6 + 5 + 2).all() and (seen.sum(-1)[20:] > 7).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window": 0}, "window: 0; expected at least 1"),
        ({"sinks": 3}, "sinks: 3; expected a mult"),
    ],
)
def test_sizes_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        hip_attention(*qkv(B, T, N, H, K=K), **(SIZES | given))
