"""InLine attention with a local residual: the 3 x 3 neighbors of a cell, weighed by head.

    o_i = InLine_i + sum_{d in {-1,0,1}^2} r_d v_{i+d},    v zero beyond the grid

Paper: Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention", 2024,
arXiv:2412.06590, equation 6: r = MLP(mean token).
Limits: r = 0 is InLine attention.
Differs: the MLP belongs to a layer, its output is an argument; the paper's code has one r for each
channel instead of each head.
"""

import itertools

import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import Impl
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill, square_grid
from attnjax.ops.linear_recurrent.inline import inline_attention
from attnjax.typing import Array, Float, K, Out, Q, TokenK, TokenV, V


@of_whole_text
@on_any_mesh
def inline_local_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    coefficients: Float[Array, "B N 3 3"],
    *,
    shape: tuple[int, int],
    phi: features.FeatureMap = features.identity,
    impl: Impl = None,
) -> Out:
    """On a grid given row by row, T = S = rows * columns."""
    B, _, N, _ = q.shape
    rows, columns = shape
    values = wide(v)
    r = wide(coefficients)[:, None, None, :, :, :, None]  # (B,1,1,N,3,3,1)
    grid = repeat_heads(values, q).reshape(B, rows, columns, N, v.shape[-1])
    grid = jnp.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    near = jnp.zeros((B, rows, columns, N, v.shape[-1]), values.dtype)
    for y, x in itertools.product(range(3), repeat=2):
        near += r[..., y, x, :] * grid[:, y : y + rows, x : x + columns]
    out = inline_attention(q, k, values, phi=phi, impl=impl)
    return (out + near.reshape(out.shape)).astype(v.dtype)


def _inline(q: Q, k: K, v: V) -> Out:
    return inline_attention(q, k, v)


OPS = (
    Op(
        inline_local_attention,
        papers=(383,),
        reads="all",
        draw={"shape": square_grid},
        limits=(Limit("r = 0 is InLine attention", {"coefficients": fill(0.0)}, _inline),),
    ),
)
