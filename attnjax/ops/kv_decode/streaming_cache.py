"""StreamingLLM's cache: it drops all but sinks and a window, and renumbers what it keeps.

    A_ij = softmax_j(rotary(q_i, p_i) . rotary(k_j, p_j) / sqrt(H)) over the kept keys,
           p their places in the cache, 0, 1, 2, ..., and p_i that of the token itself, the last

Keys are kept before their rotary positions, and distances never exceed the cache.  In the window
they are those in the text; a sink is as far away as the cache is long.

Paper: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023,
arXiv:2309.17453, section 3.2; code: mit-han-lab/streaming-llm.
Limits: up to sinks + window tokens it is causal attention over rotated q and k; without rotary
positions, base = None, it is `sink_window_attention`.
Differs: a token is evicted before a step, which sees sinks + window keys, its own among them, as
with the released code's `evict_for_space`; called behind a step that code lets it see one more.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.normalizers import State
from attnjax.core.pairwise.attend import Impl, attend_state, join_states
from attnjax.core.positions import rotary
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes
from attnjax.ops.kv_decode.streaming_llm import sink_window_attention
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Int, Out, Q, TokenK, TokenV


class StreamingCache(NamedTuple):
    """What is kept, newest last; places that no token has come to hold zeros."""

    sink_k: Float[Array, "B M K H"]
    sink_v: Float[Array, "B M K D"]
    window_k: Float[Array, "B L K H"]
    window_v: Float[Array, "B L K D"]
    count: Int[Array, ""]


@of_whole_text
@on_any_mesh
def streaming_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    sinks: int = 4,
    window: int,
    base: float | None = 10000.0,
    state: StreamingCache | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal attention as the cache gives it, of q and k before rotary positions; O(T) memory.

    A run may be split anywhere, down to one token a step: `state` is the cache behind what came
    before, None for nothing, and with `return_state` the result is (out, cache).
    """
    if window < 1 or sinks < 0:
        raise ValueError(f"window, sinks: {window}, {sinks}; expected at least 1 and 0")
    T = q.shape[1]
    at: Any = np.arange(T)
    every_k, every_v, places = k, v, at
    sink_k, sink_v = _first(k, sinks), _first(v, sinks)
    if state is not None:
        sink_k = _filled(state.sink_k, k, state.count)
        sink_v = _filled(state.sink_v, v, state.count)
        every_k = jnp.concatenate([state.window_k.astype(k.dtype), k], axis=1)
        every_v = jnp.concatenate([state.window_v.astype(v.dtype), v], axis=1)
        places = state.count - window + np.arange(window + T)
        at = state.count + at

    def part(q_at: Any, k: TokenK, v: TokenV, k_at: Any, mask: masks.Mask) -> State:
        return attend_state(
            _turned(q, q_at, base),
            _turned(k, k_at, base),
            v,
            mask=mask,
            q_positions=at,
            k_positions=k_at,
            impl=impl,
        )

    near = masks.causal & masks.window(window - 1) & ~masks.sinks(sinks)
    parts = [part(at, every_k, every_v, places, near)]
    if sinks:
        in_cache = at.clip(max=sinks + window - 1)
        slots = np.arange(sinks)
        parts.append(part(in_cache, sink_k, sink_v, slots, masks.causal))
    out = join_states(*parts).astype(q.dtype)
    if not return_state:
        return out
    count = jnp.asarray(T if state is None else state.count + T, jnp.int32)
    last_k, last_v = _last(every_k, window), _last(every_v, window)
    return out, StreamingCache(sink_k, sink_v, last_k, last_v, count)


def _turned(x: Array, at: Any, base: float | None) -> Array:
    return x if base is None else rotary(x, jnp.asarray(at), base).astype(x.dtype)


def _last(x: Array, n: int) -> Array:
    """The last n tokens, behind zeros where there are fewer."""
    missing = max(n - x.shape[1], 0)
    zeros = jnp.zeros((x.shape[0], missing, *x.shape[2:]), x.dtype)
    return jnp.concatenate([zeros, x[:, x.shape[1] + missing - n :]], axis=1)


def _first(x: Array, n: int) -> Array:
    """The first n tokens, in front of zeros where there are fewer."""
    missing = max(n - x.shape[1], 0)
    zeros = jnp.zeros((x.shape[0], missing, *x.shape[2:]), x.dtype)
    return jnp.concatenate([x[:, :n], zeros], axis=1)


def _filled(sinks: Array, x: Array, count: Array) -> Array:
    """The sinks of a text of which `count` tokens were there before x."""
    x = x.astype(sinks.dtype)
    fresh = np.arange(sinks.shape[1]) - count  # which new token comes to each place
    here = lambda places: places[None, :, None, None]
    new = jnp.take(x, fresh.clip(0, x.shape[1] - 1), axis=1)
    new = jnp.where(here(fresh < x.shape[1]), new, jnp.zeros((), x.dtype))
    return jnp.where(here(fresh < 0), sinks, new)


def _causal(q: Q, k: TokenK, v: TokenV) -> Out:
    at, base = np.arange(q.shape[1]), 10000.0
    return multi_head_attention(_turned(q, at, base), _turned(k, at, base), v, mask=masks.causal)


OPS = (
    Op(
        streaming_attention,
        papers=(355,),
        reads="past",
        draw={"sinks": 2, "window": 3},
        limits=(
            Limit(
                "up to sinks + window tokens: causal attention",
                {"window": by_sizes(lambda z: max(z["T"] - 2, 1))},
                _causal,
            ),
            Limit("no rotary positions: a mask", {"base": None}, sink_window_attention),
        ),
    ),
)
