"""Paged attention: keys and values lie in pages, of which each request has a list.

    k_b, v_b = pages[list_b], one behind the other, of which the first length_b are there
    out_bt   = attention of query t, the token length_b - T + t, over the tokens up to it

    cascade_attention    requests that begin alike read their common tokens once, all together:
                         merge of (sum of weights, weighted values) of the prefix and of the rest

Packed requests of unequal numbers of queries are one request under `masks.document`; a prefix in
pages is gathered as lists are.

Paper: Ye et al., "FlashInfer: Efficient and Customizable Attention Engine for LLM Inference
Serving", 2025, arXiv:2501.01005; code: flashinfer-ai/flashinfer.
Limits: none but the oracle; any order of the pages in memory gives the same.
Differs: sums of weights are logarithms to the base e here, `log_sum`, to the base 2 there.  Pages
are gathered first, O(n page) memory for each request; how work is shared out is the engine's.
"""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Op, Slot
from attnjax.typing import Array, Float, Int, K, Out, Q, V


@on_any_mesh
def paged_attention(
    q: Q,
    k_pages: Float[Array, "P C K H"],
    v_pages: Float[Array, "P C K D"],
    lists: Int[Array, "B n"],
    lengths: Int[Array, " B"],
    *,
    impl: Impl = None,
) -> Out:
    """Causal attention of the last T tokens of each request, which its pages hold already.

    Places of `lists` that no page stands for may hold any number of a page.
    """
    B, T = q.shape[:2]
    k, v = (_gathered(x, lists) for x in (k_pages, v_pages))
    at = lengths[:, None] - T + np.arange(T, dtype=np.int32)[None]
    return attend(q, k, v, mask=masks.causal, q_positions=at, impl=impl)


def _gathered(pages: Array, lists: Int[Array, "B n"]) -> Array:
    """Tokens of each request, one page behind the other."""
    (B, n), C = lists.shape, pages.shape[1]
    return jnp.take(pages, lists, axis=0).reshape(B, n * C, *pages.shape[2:])


@of_whole_text
@on_any_mesh
def cascade_attention(
    q: Q,
    prefix_k: Float[Array, "L K H"],
    prefix_v: Float[Array, "L K D"],
    k: K,
    v: V,
    *,
    impl: Impl = None,
) -> Out:
    """Attention over a prefix that all requests share, and causal over their own tokens.

    The queries are the last T of the S tokens behind the prefix.  Its keys are read once for all
    B T queries, which are the rows of one product.
    """
    B, T, N, H = q.shape
    if not B:
        return attend(q, k, v, impl=impl)
    rows = q.reshape(1, B * T, N, H)
    shared = attend_state(rows, prefix_k[None], prefix_v[None], impl=impl)
    shared = jax.tree.map(lambda x: x.reshape(N, B, T, x.shape[-1]).swapaxes(0, 1), shared)
    own = attend_state(q, k, v, mask=masks.causal_to_end, impl=impl)
    return join_states(shared, own).astype(q.dtype)


def _lists(slot: Slot) -> np.ndarray:
    """Pages of 4 tokens, enough for one more than T tokens, in no order; page 0 stands behind."""
    B, T, P = (slot.sizes[letter] for letter in "BTP")
    n = -(-(T + 1) // 4) + 1
    first = np.arange(B)[:, None] * n
    lists = (first + np.arange(n)) * 5 % P
    return np.where(np.arange(n) < n - 1, lists, 0).astype(np.int32)


def _lengths(slot: Slot) -> np.ndarray:
    return slot.sizes["T"] + np.arange(slot.sizes["B"], dtype=np.int32) % 2


OPS = (
    Op(
        paged_attention,
        papers=(251,),
        reads="past",
        draw={"lists": Draw(_lists), "lengths": Draw(_lengths)},
        sizes={"P": 16, "C": 4, "n": 4},
        exempt={
            "vmap": "the law cuts arrays of floats alone into examples",
            "devices": "rings take no positions of each example",
        },
    ),
    Op(
        cascade_attention,
        papers=(251,),
        reads="past",
        sizes={"L": 5},
    ),
)
