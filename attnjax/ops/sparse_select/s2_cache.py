"""S2 attention's cache: of each head, the blocks of keys that some later query still sees.

    behind token t the next query is in block u = floor((t + 1) / block), and later ones follow:
    head n keeps block j <= floor(t / block) where u - j < local
                               or (j + n step + 1) mod s = 0,    step = max(1, floor(s / N))

Near blocks leave as the text goes on, strided ones stay; what has left never returns.  A cache
holds local + (blocks of the text) / s blocks of a head, more or less.

Paper: Lin et al., "Efficient LLM Training and Serving with Heterogeneous Context Sharding among
Attention Heads", 2024, arXiv:2407.17678.
Limits: a stride of 1, or as many local blocks as there are, keeps every block.
Differs: as `s2_attention`, whose blocks these are.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.op import Limit, Op
from attnjax.typing import Array, Bool, Int


def s2_kept(
    length: int | Int[Array, ""],
    *,
    blocks: int,
    heads: int,
    block: int = 64,
    local: int = 16,
    stride: int = 8,
) -> Bool[Array, "N n"]:
    """Whether each of N = heads keeps each of n = blocks blocks when `length` tokens are there.

    `length` may be traced.  With heads of keys shared by G queries a block may go when all G of
    them let it: `kept.reshape(K, G, n).any(1)`.
    """
    for name, value in (("block", block), ("local", local), ("stride", stride), ("heads", heads)):
        if value < 1:
            raise ValueError(f"{name}: {value}; expected at least 1")
    j = np.arange(blocks)[None]
    step = max(1, stride // heads)
    far = (j + np.arange(heads)[:, None] * step + 1) % stride == 0
    length = jnp.asarray(length)
    near = length // block - j < local
    there = j * block < length
    return (near | far) & there


def _all(length: int, blocks: int, heads: int, block: int) -> Bool[Array, "N n"]:
    there = jnp.arange(blocks) * block < length
    return jnp.broadcast_to(there[None], (heads, blocks))


OPS = (
    Op(
        s2_kept,
        papers=(374,),
        draw={"length": 19, "blocks": 12, "heads": 4, "block": 2, "local": 2, "stride": 3},
        limits=(
            Limit("a stride of 1 keeps all", {"stride": 1}, _all),
            Limit("all blocks local keeps all", {"local": 99}, _all),
        ),
    ),
)
