"""Attention by layout: where words stand on a page decides what they look at.

    l_t = norm(X[x0] + Y[y0] + X[x1] + Y[y1] + H[y1 - y0] + W[x1 - x0]),    box (x0,y0,x1,y1) of t
    A = softmax((l W_Q)(l W_K)^T / sqrt(H)),    once a document;    layer n: out = A (h_n W_V)
    masked: C_i = the top_k keys of largest A_ij
            out_i = sum_{j in C_i} softmax_{C_i}(q_i . k_j / sqrt(H)) v_j

A page is looked at once: `attend(l W_Q, l W_K, h_n W_V)` in every layer n, q and k the same, is
Skim-Attention, and `attention_weights(l W_Q, l W_K)` the map itself, to be kept where it is small.
The masked form lends the layout to a pretrained model of text, whose q, k and v it gets.

Paper: Nguyen et al., "Skim-Attention: Learning to Focus via Document Layout", 2021,
arXiv:2109.01078, section 3; code: recitalAI/skim-attention.
Limits: none but the oracles; top_k = S is softmax attention.
Differs: the code adds -1e4 to scores outside of C_i; here they are not seen.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import aligned, layer_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Op, Slot
from attnjax.ops.multihead_structure.decoupled import best_keys
from attnjax.typing import Array, Float, Int, K, Out, Q, V


class LayoutTables(NamedTuple):
    """Vectors of X places on each axis, of heights and widths; scale and shift of the norm."""

    x: Float[Array, "X W"]
    y: Float[Array, "X W"]
    height: Float[Array, "X W"]
    width: Float[Array, "X W"]
    scale: Float[Array, " W"]
    shift: Float[Array, " W"]


@on_any_mesh
def layout_embedding(
    boxes: Int[Array, "B T 4"], tables: LayoutTables, *, eps: float = 1e-12
) -> Float[Array, "B T W"]:
    """l of boxes (x0, y0, x1, y1), integers from 0 to X - 1 with x0 <= x1, y0 <= y1; wide.

    Boxes out of range give NaN.
    """
    x0, y0, x1, y1 = (boxes[..., i] for i in range(4))
    reads = (
        (tables.x, x0),
        (tables.y, y0),
        (tables.x, x1),
        (tables.y, y1),
        (tables.height, y1 - y0),
        (tables.width, x1 - x0),
    )
    # a negative index would count from the end
    rows = [
        wide(table).at[jnp.where(at < 0, len(table), at)].get(mode="fill", fill_value=jnp.nan)
        for table, at in reads
    ]
    total = layer_norm(sum(rows[1:], rows[0]), eps)
    return total * aligned(tables.scale, total) + aligned(tables.shift, total)


@on_any_mesh
def skimmed_attention(
    q: Q,
    k: K,
    v: V,
    layout_q: Float[Array, "B T N R"],
    layout_k: Float[Array, "B S K R"],
    *,
    top_k: int,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention of text to the `top_k` keys that the layout likes best, for each head.

    No gradient reaches the layout. Memory O(T S), of its scores.
    """
    chosen = best_keys(layout_q, layout_k, top_k, mask=mask)
    return attend(q, k, v, mask=mask, blocks=chosen, impl=impl)


def _boxes(slot: Slot) -> np.ndarray:
    """The same ones for every seed: laws draw floats again, integers not."""
    corners = np.random.default_rng(0).integers(0, slot.sizes["X"], (*slot.shape[:2], 2, 2))
    return np.sort(corners, axis=2).reshape(*slot.shape[:2], 4)


OPS = (Op(layout_embedding, papers=(127,), sizes={"X": 11}, draw={"boxes": Draw(_boxes)}),)
