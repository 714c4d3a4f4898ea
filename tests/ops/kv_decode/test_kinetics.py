"""Block top-k of groups: the oracle; which keys are seen, steps of decoding."""

import functools

import numpy as np
import pytest

from attnjax.ops.kv_decode import Generation, block_costs, block_top_k_attention, dense_costs
from tests.helpers import near, qkv, run, weights_of
from tests.ops.plain import blend, weights

attention = functools.partial(run, block_top_k_attention)


def seen_keys(q, k, top_k, block, sinks, window):
    (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
    seen, G = np.zeros((B, N, T, S), bool), N // K
    for b, n, t in np.ndindex(B, N, T):
        i, group = S - T + t, n // G
        count = max(i + 1 - window - sinks, 0) // block
        blocks = [range(sinks + m * block, sinks + (m + 1) * block) for m in range(count)]
        score = lambda js, b=b, t=t, group=group: np.mean(
            [q[b, t, h] @ k[b, j, group] for h in range(group * G, group * G + G) for j in js]
        )
        chosen = [j for js in sorted(blocks, key=score, reverse=True)[:top_k] for j in js]
        local = range(sinks + count * block, i + 1)
        seen[b, n, t, [j for j in {*range(sinks), *chosen, *local} if j <= i]] = True
    return seen


def block_top_k_attention_oracle(q, k, v, top_k, block, sinks, window):
    return blend(weights(q, k, seen_keys(q, k, top_k, block, sinks, window)), v)


@pytest.mark.parametrize(("block", "sinks", "window"), [(3, 4, 2), (4, 0, 5), (2, 4, 1)])
def test_what_is_seen(block, sinks, window):
    q, k, _ = qkv(2, 25, 4, 8, K=2)
    options = {"top_k": 2, "block": block, "sinks": sinks, "window": window}
    got = weights_of(attention, q, k, **options) > 0
    assert (got == seen_keys(np.asarray(q), np.asarray(k), *options.values())).all()
    assert got.sum(-1).max() <= sinks + 2 * block + window + block - 1
    assert (got[:, ::2] == got[:, 1::2]).all()  # of a group


def test_a_step_of_decoding_is_the_last_row():
    q, k, v = qkv(2, 25, 4, 8, K=2)
    options = {"top_k": 2, "block": 3, "sinks": 4, "window": 2}
    whole = attention(q, k, v, **options)
    near(attention(q[:, -1:], k, v, **options), whole[:, -1:])
    near(attention(q[:, 10:11], k[:, :11], v[:, :11], **options), whole[:, 10:11])


def test_a_window_without_the_query_itself_is_refused():
    with pytest.raises(ValueError, match="window, sinks, block: 0, 4, 16; expected at least 1"):
        block_top_k_attention(*qkv(1, 3, 1, 2), window=0)


def test_costs_are_sums_over_the_steps():
    """Of reading and multiplying all keys, or a budget of them, at each token."""
    g = Generation(prompt=40, output=100, parameters=7, heads=4, kv_heads=2, width=8, samples=3)
    keys = sum(40 + t + 0.5 for t in range(100))  # a token's own counts half
    assert dense_costs(g).compute == 3 * (2 * 7 * 100 + 4 * keys * 4 * 8)
    shared = 40 * 100 + 3 * sum(t + 0.5 for t in range(100))
    assert dense_costs(g).memory == 4 * shared * 2 * 8 * 562.5
    few = sum(min(64, 40 + t + 0.5) for t in range(100))
    search = (2 * 40 + 100) // 16 * 100
    assert block_costs(g, 64, 16).compute == 3 * (1400 + (4 * few + search) * 4 * 8)


def test_memory_of_blocks_stops_to_grow_with_the_square_of_the_length():
    of = lambda output: Generation(4096, output, 8e9, 1024, 256, 128, samples=4)
    dense = dense_costs(of(32000)).memory / dense_costs(of(16000)).memory
    sparse = block_costs(of(32000), 1024, 16).memory / block_costs(of(16000), 1024, 16).memory
    assert sparse < 2.5 < dense
    assert dense_costs(of(32000)).memory > 10 * dense_costs(of(32000)).compute
