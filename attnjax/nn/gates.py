"""Gates that learn which keys are worth attending to."""

import jax
from flax import nnx

from attnjax.core import masks
from attnjax.core.blocks.selection import Selection
from attnjax.ops.sparse_select.seer import (
    SIXTEEN,
    BlockSizes,
    Choose,
    seer_attention,
    seer_blocks,
    seer_loss,
)

PAPERS = (138,)


class SeerGate(nnx.Module):
    """`attend` of a layer: SeerAttention with the projections of its gate.

    heads N, head_width H, kv_heads K (N if None), gate_width R (even unless `base` is None);
    `blocks`, `choose`, `base` and `mask` as in `seer_attention`.

    No gradient of attention reaches w_q (N,H,R) and w_k (K,3H,R): `loss` trains them, the rest of
    the model frozen or not.
    """

    def __init__(
        self,
        heads: int,
        head_width: int,
        *,
        rngs: nnx.Rngs,
        kv_heads: int | None = None,
        gate_width: int = 128,
        blocks: BlockSizes = (64, 64),
        choose: Choose = SIXTEEN,
        base: float | None = 10000.0,
        mask: masks.Mask = masks.everything,
    ):
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads: got {kv_heads}, expected a divisor of heads {heads}")
        normal = lambda *shape: nnx.Param(rngs.params.normal(shape) * shape[1] ** -0.5)
        self.w_q = normal(heads, head_width, gate_width)
        self.w_k = normal(kv_heads, 3 * head_width, gate_width)
        self.blocks, self.choose, self.base, self.mask = blocks, choose, base, mask

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The attention, (B,T,N,D); q and k without rotary positions."""
        return seer_attention(
            q,
            k,
            v,
            self.w_q[...],
            self.w_k[...],
            blocks=self.blocks,
            choose=self.choose,
            base=self.base,
            mask=self.mask,
        )

    def selection(self, q: jax.Array, k: jax.Array) -> Selection:
        """The blocks that each head chooses."""
        w = self.w_q[...], self.w_k[...]
        return seer_blocks(q, k, *w, self.blocks, self.choose, self.base)

    def loss(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """`seer_loss` of this gate."""
        return seer_loss(
            q, k, self.w_q[...], self.w_k[...], blocks=self.blocks, base=self.base, mask=self.mask
        )
