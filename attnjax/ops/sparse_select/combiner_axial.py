"""Combiner along rows, and in both directions: the other patterns of `combiner_fixed`.

    axial   tokens in rows of `width`; u_rc = softmax_c'(q_rc . k_rc' / sqrt(H)) v over a whole row
            query (r, c) attends in one softmax to keys (r, c'), c' <= c, of values v,
            and to summaries (r', c), r' < r, of values u_r'c and of keys that are learned from them
    both    the tokens of the own block, and all blocks, the own too, as regions, `combiner_fixed`

The learned keys of the released axial layer are W_2 norm(x + W_1 u), x what q, k, v are maps of.

Paper: Ren et al., "Combiner: Full Attention Transformer with Sparse Computation Cost", 2021,
arXiv:2107.05768, sections 3 and 4; code: google-research/combiner, `_SelfAttAxialRowmajor`,
`approx_attention.py`.
Limits: one row of all tokens is causal attention.
Differs: a last row or block that is not full is one all the same.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def combiner_axial(
    q: Q, k: TokenK, v: TokenV, summary_k: Q, *, width: int, impl: Impl = None
) -> Out:
    """Causal attention to the own row so far and to a summary of each row before, T (w + T/w).

    `summary_k` are the keys of the summaries u, which `axial_summaries` gives: one for each token
    and head, learned from u alone or from the tokens of its row, too.
    """
    dtype = q.dtype
    u = axial_summaries(q, k, v, width=width, impl=impl)
    q, k, v = wide(q), wide(k), wide(v)
    place = np.arange(q.shape[1])
    row, column = masks.document(place // width), masks.document(place % width)
    own = attend_state(q, k, v, mask=masks.causal & row, impl=impl)
    above = masks.causal & column & ~masks.window(0, 0)
    rest = attend_state(q, wide(summary_k), u, mask=above, impl=impl)
    return join_states(own, rest).astype(dtype)


@on_any_mesh
def axial_summaries(q: Q, k: TokenK, v: TokenV, *, width: int, impl: Impl = None) -> Out:
    """u, wide: what each token reads of its whole row, for queries of later rows."""
    if width < 1:
        raise ValueError(f"width: {width}; expected at least 1")
    row = masks.document(np.arange(q.shape[1]) // width)
    return attend(wide(q), wide(k), wide(v), mask=row, impl=impl)


@of_whole_text
@on_any_mesh
def combiner_both(q: Q, k: TokenK, v: TokenV, *, block: int, impl: Impl = None) -> Out:
    """Attention in both directions to the tokens of a query's block and to summaries of all blocks.

    T (block + T/block) scores; the own block is there twice, by its tokens and by its summary.
    """
    if block < 1:
        raise ValueError(f"block: {block}; expected at least 1")
    T, dtype = q.shape[1], q.dtype
    q, k, v = wide(q), wide(k), wide(v)
    own = masks.document(np.arange(T) // block)
    near = attend_state(q, k, v, mask=own, impl=impl)
    regions, whole = [], T - T % block
    for start, stop, size in ((0, whole, block), (whole, T, T - whole)):
        if start < stop:
            part = slice(start, stop)
            regions.append(_regions(q[:, part], k[:, part], v[:, part], size, impl))
    keys, values = (jnp.concatenate(x, axis=1) for x in zip(*regions, strict=True))
    return join_states(near, attend_state(q, keys, values, impl=impl)).astype(dtype)


def _regions(
    q: Q, k: TokenK, v: TokenV, size: int, impl: Impl
) -> tuple[Float[Array, "B n N H"], Float[Array, "B n N D"]]:
    """The largest key of each block, channel by channel, and what its largest query reads of it."""
    B, T, N, H = q.shape
    n = T // size
    top = lambda x: x.reshape(B, n, size, *x.shape[2:]).max(2)
    inside = masks.document(np.arange(n), np.arange(T) // size)
    return repeat_heads(top(k), q), attend(top(q), k, v, mask=inside, impl=impl)


def _causal(q: Q, k: TokenK, v: TokenV) -> Out:
    return causal_attention(q, k, v)


OPS = (
    Op(
        combiner_axial,
        papers=(32,),
        draw={"width": 3},
        limits=(
            Limit("one row is causal attention", {"width": by_sizes(lambda z: z["T"])}, _causal),
        ),
    ),
    Op(combiner_both, papers=(32,), reads="all", draw={"block": 4}),
)
