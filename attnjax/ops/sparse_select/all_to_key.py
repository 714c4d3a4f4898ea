"""All-to-key attention: of another image, positions see a summary of each region, or one region.

    distributed   m_g = mean of the P keys of region g,  w_j = sigmoid(b + a m_g . k_j)
                  K_g = (m_g + sum_j w_j k_j) / (P + 1),  V_g alike with the same w
                  out_i = sum_g softmax_g(q_i . K_g) V_g
    progressive   g(c) = argmax_g sum_p q_cp . k_gp,  p the place inside a region
                  out_i = sum_j softmax_j(q_i . k_j) v_j over region g(c) for i in region c

Paper: Zhu et al., "All-to-key Attention for Arbitrary Style Transfer", 2022, arXiv:2212.04105,
section 3; code: LearningHx/StyA2K.
Limits: regions of one position, or one region of all, are softmax attention of scale 1.
Differs: nothing in the formulas. The module adds a projection of each branch to its input, from
normalized maps projected for each branch; regions are 8 x 8 and 4 x 4 there. A side that `region`
does not divide has a smaller region at its end; the code drops it.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.order import BlockOrder, grid_blocks
from attnjax.core.chunks import cut
from attnjax.core.numerics import einsum, finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, by_sizes, grid, square_grid
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V

Scalar = float | Float[Array, ""]


@of_whole_text
@on_any_mesh
def distributed_attention(
    q: Q,
    k: K,
    v: V,
    *,
    shape: Sequence[int],
    region: int = 8,
    gain: Scalar = 1.0,
    bias: Scalar = 0.0,
    impl: Impl = None,
) -> Out:
    """Attention to one key and value for each region of `region` x `region` keys.

    shape        (rows, columns) of the keys, S = rows * columns
    gain, bias   a and b, numbers that are learned
    """
    cells = _regions("shape", shape, k.shape[1], region)
    keys, values = _inside(cells, k), _inside(cells, v)
    there = jnp.asarray(cells.filled, keys.dtype)[None]
    size = cut(there, cells.size).sum(2)[..., None, None]
    mean = lambda x: x.sum(2) / size
    likeness = einsum("BgKH,BgPKH->BgPK", mean(keys), keys)
    weight = jax.nn.sigmoid(wide(jnp.asarray(bias)) + wide(jnp.asarray(gain)) * likeness)
    gathered = lambda x: (mean(x) + einsum("BgPK,BgPKH->BgKH", weight, x)) / (size + 1.0)
    out = attend(wide(q), gathered(keys), gathered(values), scale=1.0, impl=impl)
    return out.astype(q.dtype)


@of_whole_text
@on_any_mesh
def progressive_attention(
    q: Q,
    k: K,
    v: V,
    *,
    shape: Sequence[int],
    key_shape: Sequence[int],
    region: int = 8,
    impl: Impl = None,
) -> Out:
    """Attention to the one region of keys that is most like the query's region, place by place.

    `shape` and `key_shape` are the (rows, columns) of queries and keys. Each head chooses for
    itself, without gradient.
    """
    rows = _regions("shape", shape, q.shape[1], region)
    cells = _regions("key_shape", key_shape, k.shape[1], region)
    flat = lambda x: jnp.moveaxis(x, 2, 3).reshape(
        *x.shape[:2], x.shape[3], math.prod(x.shape[2::2])
    )
    likeness = select.dot_scores(flat(_inside(rows, q)), flat(_inside(cells, k)))
    out = attend(
        rows.take(q),
        cells.take(k),
        cells.take(v),
        blocks=select.top_k(likeness, 1, block_q=rows.size, block_k=cells.size),
        mask=cells.seen(masks.everything, q.shape[1]),
        k_positions=cells.order,
        scale=1.0,
        impl=impl,
    )
    return rows.restored(out)


def _regions(name: str, shape: Sequence[int], tokens: int, region: int) -> BlockOrder:
    """The cells of a map, region behind region."""
    if len(shape) != 2 or math.prod(shape) != tokens:
        raise ValueError(f"{name}: {tuple(shape)}; expected rows and columns of {tokens} tokens")
    return grid_blocks(shape, (region, region))


def _inside(cells: BlockOrder, x: K) -> Float[Array, "B g P K H"]:
    """The tokens of each region, wide; zeros where it has none."""
    there = jnp.asarray(cells.filled)[None, :, None, None]
    return cut(jnp.where(there, finite(cells.take(x)), 0.0), cells.size)


def _one_position(q: Q, k: K, v: V, gain: Scalar, bias: Scalar) -> Out:
    weight = (1.0 + jax.nn.sigmoid(bias + gain * jnp.square(k).sum(-1, keepdims=True))) / 2
    return _plain(q, weight * k, weight * v)


def _plain(q: Q, k: K, v: V) -> Out:
    return multi_head_attention(q * q.shape[-1] ** 0.5, k, v)


_number = Draw(lambda slot: np.asarray(slot.rng.standard_normal()))
_key_grid = by_sizes(lambda z: grid(z["S"]))

OPS = (
    Op(
        distributed_attention,
        papers=(200,),
        reads="all",
        draw={"shape": _key_grid, "region": 2, "gain": _number, "bias": _number},
        limits=(Limit("regions of one position are attention", {"region": 1}, _one_position),),
    ),
    Op(
        progressive_attention,
        papers=(200,),
        reads="all",
        draw={"shape": square_grid, "key_shape": _key_grid, "region": 2},
        limits=(
            Limit(
                "one region of all is softmax attention",
                {"region": by_sizes(lambda z: z["T"] + z["S"])},
                _plain,
            ),
        ),
    ),
)
