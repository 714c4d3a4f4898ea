"""Halo attention: blocks of queries see the block of keys around them, a halo wider.

    A_ij = softmax_j(q_i . k_j / sqrt(H) + q_i . r[y_j - y_i] + q_i . c[x_j - x_i])
    j in the block of i, `block` cells on each axis, or at most `halo` cells beside it

Rows r and columns c are learned, shared by the heads. A query does not see outside the map. With
blocks of one cell each query has the 2 halo + 1 cells around it on every axis. Queries of every
second cell make a layer that halves the map: `out.reshape(B, *shape, N, D)[:, ::2, ::2]`.

The same in one dimension, without tables, reads long texts: chunks of 40 tokens with 5 more on
either side (TKL). It has layers of self-attention inside a chunk, whose positions begin anew in
each, and keeps the tokens without the halo: `cut = boxes((T,), 40, halo=5)`, layers of
`cut.take_keys(x)` (chunks,50,W) with `masks.document` of `cut.parts[1]` against the halo outside,
`y = cut.restored(y[:, 5:45])`, and `mix * x + (1 - mix) * y` are its contextual vectors.

Paper: Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
2021, arXiv:2103.12731, section 2; Hofstätter et al., "Local Self-Attention over Long Text for
Efficient Document Retrieval", 2020, arXiv:2005.04908 (chunks).
Limits: one block as large as the map is softmax attention.
Differs: no code of the authors was found. In timm's, keys outside the map are zeros, which take
weight, and its tables, of 2 (block + 2 halo) - 1 places of which the first 2 halo are not in use,
belong to the queries as they are, as here; another port scales them, too.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import einsum, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, square_grid
from attnjax.ops.local_structured.grids import PerAxis, boxes, per_axis
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV

Tables = tuple[Float[Array, "_ H"], ...]


@of_whole_text
@on_any_mesh
def halo_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    tables: Tables | None = None,
    *,
    shape: Sequence[int],
    block: PerAxis = 8,
    halo: PerAxis = 3,
    impl: Impl = None,
) -> Out:
    """Softmax attention on a grid, T = S = prod(shape) cells in row-major order.

    `tables` are vectors of relative places, one array (2 (block + halo) - 1, H) for each axis,
    index 0 the most negative place of a key; None leaves places out. `block` and `halo` are one
    number for all axes or one each.
    """
    if tables is None:
        return boxes(shape, block, halo=halo).attend(q, k, v, impl=impl)
    sizes = per_axis("block", block, len(shape))
    halos = per_axis("halo", halo, len(shape), 0)
    expected = tuple((2 * (b + h) - 1, q.shape[3]) for b, h in zip(sizes, halos, strict=True))
    if tuple(table.shape for table in tables) != expected:
        raise ValueError(f"tables: shapes {[t.shape for t in tables]}; expected {expected}")
    cut = boxes(shape, block, halo=halo)
    places, rows = _queried(cut.take(q), tables, sizes, halos), _marked(sizes, halos)
    keys = wide(cut.take_keys(k))
    marks = jnp.broadcast_to(
        jnp.asarray(rows, keys.dtype)[None, :, None], (*keys.shape[:3], rows.shape[1])
    )
    queries = wide(cut.take(q)) / math.sqrt(q.shape[3])
    out = attend(
        jnp.concatenate([queries, *places], axis=-1),
        jnp.concatenate([keys, marks], axis=-1),
        wide(cut.take_keys(v)),
        mask=cut.mask(q.shape[0]),
        scale=1.0,
        impl=impl,
    )
    return cut.restored(out).astype(q.dtype)


def _queried(q: Q, tables: Tables, sizes: Sequence[int], halos: Sequence[int]) -> list[Array]:
    """For each axis, what a query gives each row of keys of its box, (boxes,c,N,size + 2 halo).

    The sum over axes is a product with the marks of a key, so that no score is stored.
    """
    found = []
    own = np.indices(tuple(sizes)).reshape(len(sizes), math.prod(sizes))
    for mine, table, b, h in zip(own, tables, sizes, halos, strict=True):
        scores = einsum("BTNH,RH->BTNR", q, table)
        at = np.arange(b + 2 * h)[None, :] + (b - 1 - mine)[:, None]
        found.append(jnp.take_along_axis(scores, jnp.asarray(at)[None, :, None], axis=-1))
    return found


def _marked(sizes: Sequence[int], halos: Sequence[int]) -> np.ndarray:
    """For each key of a box, a one at its row of each axis, (s, rows of all axes)."""
    lengths = [b + 2 * h for b, h in zip(sizes, halos, strict=True)]
    own = np.indices(tuple(lengths)).reshape(len(lengths), math.prod(lengths))
    return np.concatenate([np.eye(n)[x] for x, n in zip(own, lengths, strict=True)], axis=-1)


def _tables(slot: Slot) -> tuple[np.ndarray, ...]:
    """Of blocks of (2, 3) cells and a halo of (1, 2)."""
    return tuple(slot.rng.standard_normal((n, slot.sizes["H"])) for n in (5, 9))


OPS = (
    Op(
        halo_attention,
        papers=(318, 172),
        reads="all",
        sizes={"T": 15, "S": 15},
        draw={"tables": Draw(_tables), "shape": square_grid, "block": (2, 3), "halo": (1, 2)},
        limits=(
            Limit(
                "one block as large as the map is softmax attention",
                {"tables": None, "block": square_grid, "halo": 0},
                multi_head_attention,
            ),
        ),
    ),
)
