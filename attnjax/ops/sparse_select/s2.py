"""S2 attention: each head sees near blocks of keys, and every s-th block from a place of its own.

    query block i of head n sees key block j <= i where i - j < local
                               or (j + n step + 1) mod s = 0,    step = max(1, floor(s / N))
    A_ij = softmax_j(q_i . k_j / sqrt(H)) over keys j <= i of these blocks

Paper: Lin et al., "Efficient LLM Training and Serving with Heterogeneous Context Sharding among
Attention Heads", 2024, arXiv:2407.17678.
Limits: a stride of 1, or as many local blocks as there are, is causal attention.
Differs: the rule is that of vLLM, which serves Phi-3-small by it; the authors' repository had no
code. Phi-3-small puts a dense layer after each sparse one, which is the caller's.
"""

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.blocks.selection import Selection
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def s2_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    block: int = 64,
    local: int = 16,
    stride: int = 8,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention to `local` blocks and to one of `stride` earlier ones, shifted by the head.

    Together the heads see all blocks if N >= stride. The work is that of the blocks seen. A cache
    may drop a block that no later query of a head sees, see `s2_kept`. `mask` forbids more.
    """
    B, T, N, _ = q.shape
    chosen = s2_blocks(B, T, N, block=block, local=local, stride=stride)
    return attend(q, k, v, blocks=chosen, mask=masks.causal & mask, impl=impl)


def s2_blocks(B: int, T: int, N: int, *, block: int, local: int, stride: int) -> Selection:
    """What T tokens of N heads see, the same in B examples: local and strided blocks."""
    for name, value in (("block", block), ("local", local), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name}: {value}; expected at least 1")
    n = -(-T // block)
    own = jnp.arange(n)[:, None, None]
    near = own - jnp.arange(min(local, n))[None, None]  # (n,1,local)
    first = (-1 - jnp.arange(N) * max(1, stride // N)) % stride
    far = first[None, :, None] + stride * jnp.arange(-(-n // stride))[None, None]  # (1,N,places)
    parts = (near, near >= 0), (far, own - far >= local)
    wide = lambda x: jnp.broadcast_to(x, (B, n, N, x.shape[-1]))
    indices, valid = (jnp.concatenate([wide(x) for x in xs], -1) for xs in zip(*parts, strict=True))
    return Selection(indices, valid, block, block)


OPS = (
    Op(
        s2_attention,
        papers=(374,),
        draw={"block": 2, "local": 1, "stride": 3},
        limits=(
            Limit("a stride of 1 is causal attention", {"stride": 1}, causal_attention),
            Limit("all blocks local is causal attention", {"local": 99}, causal_attention),
        ),
    ),
)
