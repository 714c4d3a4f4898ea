"""The cache of sinks and a window: the oracle keeps one; its size, the step at which it is full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.kv_decode import streaming_attention
from tests.helpers import near, qkv
from tests.ops.plain import softmax


def _turned(x, place, base):
    half = len(x) // 2
    angle = place * base ** (-np.arange(half) / half)
    a, b = x[:half], x[half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    )


def streaming_attention_oracle(q, k, v, sinks, window, base=10000.0):
    (B, T, N, H), K, D = q.shape, k.shape[2], v.shape[-1]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        cache = []
        for t in range(T):
            cache.append((k[b, t, n * K // N], v[b, t, n * K // N]))
            if len(cache) > sinks + window:
                del cache[sinks]
            last = _turned(q[b, t, n], len(cache) - 1, base)
            scores = [last @ _turned(key, p, base) for p, (key, _) in enumerate(cache)]
            out[b, t, n] = softmax(np.array(scores) / np.sqrt(H)) @ [x for _, x in cache]
    return out


def test_a_cache_has_one_size_and_one_program_takes_every_step():
    q, k, v = qkv(2, 12, 4, 8, K=2)
    options = {"sinks": 2, "window": 3}
    step = jax.jit(
        lambda q, k, v, state: streaming_attention(
            q, k, v, state=state, return_state=True, **options
        )
    )
    out, state = step(q[:, :1], k[:, :1], v[:, :1], None)
    outs = [out]
    for t in range(1, 12):
        out, state = step(*(x[:, t : t + 1] for x in (q, k, v)), state)
        outs.append(out)
    assert step._cache_size() == 2  # the first has no cache
    assert state.sink_k.shape == (2, 2, 2, 8)
    assert state.window_v.shape == (2, 3, 2, 8)
    assert int(state.count) == 12
    near(jnp.concatenate(outs, axis=1), streaming_attention(q, k, v, **options))


@pytest.mark.parametrize(("sinks", "window"), [(0, 3), (1, 1), (4, 20)])
def test_other_sizes(sinks, window):
    q, k, v = qkv(1, 9, 2, 4)
    got = streaming_attention(q, k, v, sinks=sinks, window=window)
    near(got, streaming_attention_oracle(*map(np.float64, (q, k, v)), sinks, window))


def test_a_window_without_the_token_itself_is_refused():
    with pytest.raises(ValueError, match="window, sinks: 0, 4; expected at least 1 and 0"):
        streaming_attention(*qkv(1, 3, 1, 2), window=0)
