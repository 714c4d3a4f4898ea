"""Combiner: each query sees some tokens, and through summaries of regions all others before it.

    region R:  kbar = max of k,  qbar = max of q over R, channel by channel,
               vbar = sum_{j in R} softmax_j(qbar . k_j / sqrt(H)) v_j
    o_i = one softmax over q_i . k_j / sqrt(H) of tokens j and q_i . kbar_R / sqrt(H) of regions R,
          of v_j and vbar_R
    fixed     tokens j <= i of the own block, and each earlier block as a region
    dyadic    the token i, and for each bit l of i that is set the region of 2^l tokens which ends
              where those of the lower bits begin

Paper: Ren et al., "Combiner: Full Attention Transformer with Sparse Computation Cost", 2021,
arXiv:2107.05768, sections 3 and 4; code: google-research/combiner, the JAX layers.
Limits: blocks of one token are causal attention, and so is one block of all (fixed).
Differs: the paper calls the dyadic pattern logsparse; regions are as in the code, the paper's may
overlap. Its axial pattern and that of both directions: `combiner_axial`, `combiner_both`.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def combiner_fixed(q: Q, k: TokenK, v: TokenV, *, block: int, impl: Impl = None) -> Out:
    """Causal attention to a query's block and to a summary of each one before, T (block + T/block).

    A summary depends on its own tokens alone, and serves all queries. sqrt(T) is the block of the
    least work.
    """
    if block < 1:
        raise ValueError(f"block: {block}; expected at least 1")
    T, dtype = q.shape[1], q.dtype
    q, k, v = wide(q), wide(k), wide(v)
    own = masks.causal & masks.document(np.arange(T) // block)
    states = [attend_state(q, k, v, mask=own, impl=impl)]
    if block < T:
        keys, values = _regions(q, k, v, block, impl)
        behind = (np.arange(keys.shape[1]) + 1) * block  # the first tokens that see them
        earlier = attend_state(q, keys, values, mask=masks.causal, k_positions=behind, impl=impl)
        states.append(earlier)
    return join_states(*states).astype(dtype)


@of_whole_text
@on_any_mesh
def combiner_dyadic(q: Q, k: TokenK, v: TokenV, *, impl: Impl = None) -> Out:
    """Causal attention to a query's own token and to at most log2(T) regions, O(T log T)."""
    (B, T), dtype = q.shape[:2], q.dtype
    q, k, v = wide(q), wide(k), wide(v)
    states = [attend_state(q, k, v, mask=masks.window(0), impl=impl)]
    for bit in range((T - 1).bit_length()):
        keys, values = _regions(q, k, v, 1 << bit, impl)
        block = jnp.broadcast_to((jnp.arange(T) >> bit)[None, :, None, None], (B, T, 1, 1))
        before = Selection(block - 1, block % 2 == 1, block_q=1, block_k=1)
        states.append(attend_state(q, keys, values, blocks=before, impl=impl))
    return join_states(*states).astype(dtype)


def _regions(
    q: Q, k: TokenK, v: TokenV, size: int, impl: Impl
) -> tuple[Float[Array, "B n N H"], Float[Array, "B n N D"]]:
    """kbar and vbar of all whole blocks of `size` tokens; what is left at the end is no region."""
    n = q.shape[1] // size
    q, k, v = (x[:, : n * size] for x in (q, k, v))
    top = lambda x: x.reshape(len(x), n, size, *x.shape[2:]).max(2)
    inside = masks.document(np.arange(n), np.arange(n * size) // size)
    return repeat_heads(top(k), q), attend(top(q), k, v, mask=inside, impl=impl)


OPS = (
    Op(
        combiner_fixed,
        papers=(32,),
        draw={"block": 3},
        limits=(
            Limit("blocks of one token are causal attention", {"block": 1}, causal_attention),
            Limit(
                "one block is causal attention",
                {"block": by_sizes(lambda z: z["T"])},
                causal_attention,
            ),
        ),
    ),
    Op(combiner_dyadic, papers=(32,)),
)
