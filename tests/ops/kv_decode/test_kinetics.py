"""Block top-k of groups: the oracle; which keys are seen, steps of decoding."""

import numpy as np
import pytest

from attnjax.ops.kv_decode import block_top_k_attention
from tests.helpers import near, qkv, weights_of
from tests.ops.plain import blend, weights


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
    got = weights_of(block_top_k_attention, q, k, **options) > 0
    assert (got == seen_keys(np.asarray(q), np.asarray(k), *options.values())).all()
    assert got.sum(-1).max() <= sinks + 2 * block + window + block - 1
    assert (got[:, ::2] == got[:, 1::2]).all()  # of a group


def test_a_step_of_decoding_is_the_last_row():
    q, k, v = qkv(2, 25, 4, 8, K=2)
    options = {"top_k": 2, "block": 3, "sinks": 4, "window": 2}
    whole = block_top_k_attention(q, k, v, **options)
    near(block_top_k_attention(q[:, -1:], k, v, **options), whole[:, -1:])
    near(block_top_k_attention(q[:, 10:11], k[:, :11], v[:, :11], **options), whole[:, 10:11])


def test_a_window_without_the_query_itself_is_refused():
    with pytest.raises(ValueError, match="window, sinks, block: 0, 4, 16; expected at least 1"):
        block_top_k_attention(*qkv(1, 3, 1, 2), window=0)
