"""Attention sinks: each query sees the first tokens of the text and its most recent ones.

    A_ij = softmax_j(q_i . k_j / sqrt(H)) over j <= i with j < sinks or j > i - window

Paper: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023,
arXiv:2309.17453.
Limits: T <= sinks + window is causal attention; sinks = 0 is sliding-window attention.
Differs: a mask over all keys; `streaming_attention` has the cache, which renumbers positions.
"""

from attnjax.core import masks
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import causal_attention, multi_head_attention
from attnjax.typing import K, Out, Q, V


def sink_window_attention(
    q: Q,
    k: K,
    v: V,
    *,
    sinks: int = 4,
    window: int,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention over `sinks` first keys and the last `window`, the query's own among them.

    `mask` forbids more. Work is linear in T where tiles are skipped.
    """
    if window < 1:
        raise ValueError(f"window: {window}; expected at least 1, the query's own place")
    kept = masks.causal & (masks.window(window - 1) | masks.sinks(sinks))
    return attend(q, k, v, mask=kept & mask, impl=impl)


def _sliding(q: Q, k: K, v: V, window: int) -> Out:
    return multi_head_attention(q, k, v, mask=masks.window(window - 1))


OPS = (
    Op(
        sink_window_attention,
        papers=(355,),
        draw={"sinks": 2, "window": 3},
        limits=(
            Limit(
                "up to sinks + window tokens it is causal attention",
                {"window": by_sizes(lambda z: max(z["T"] - 2, 1))},
                causal_attention,
            ),
            Limit("no sinks: sliding-window attention", {"sinks": 0}, _sliding),
        ),
    ),
)
