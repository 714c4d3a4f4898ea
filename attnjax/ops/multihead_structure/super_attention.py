"""Attention with fewer projections: slices of the input in place of keys and values.

    x = [x_1; ..; x_N] along the width, H each
    optimised     softmax(q_n k_n^T / sqrt(H)) x_n                      W_Q, W_K, W_O: 3 W^2 weights
    efficient     softmax(q_n x_n^T / sqrt(H)) x_n                      W_Q, W_O
    super         softmax(q_n x_n^T / sqrt(H)) (A x)_n                  A (T,T), shared by the heads

The first two are recipes: `attend(q, k, slices(x, N))`, `attend(q, slices(x, N), slices(x, N))`.

Paper: Hosseini et al., "You Need to Pay Better Attention: Rethinking the Mathematics of Attention
Mechanism", 2024, arXiv:2403.01643, section 3.
Limits: A = 1 is efficient attention.
Differs: a published port, NMesaC/pay-better-attention-pytorch-keras, normalizes over queries, a
slip, and has a bias beside A. Where A is cut off, so is the context: T is at most its length.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import einsum, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op
from attnjax.ops.softmax_core.multi_head import causal_attention, multi_head_attention
from attnjax.typing import Array, Float, Out, Q

Alignment = Float[Array, "X X"]


@of_whole_text
@on_any_mesh
def super_attention(
    q: Q, x: Float[Array, "B T W"], alignment: Alignment, *, impl: Impl = None
) -> Out:
    """Softmax attention of q = x W_Q to slices of x; values are mixed over positions by A.

    A is for up to X tokens; fewer take its first rows and columns.
    """
    return attend(q, slices(x, q.shape[2]), _aligned(q, x, alignment), impl=impl)


@of_whole_text
@on_any_mesh
def super_attention_causal(
    q: Q, x: Float[Array, "B T W"], alignment: Alignment, *, impl: Impl = None
) -> Out:
    """The same for language models: A without what is above its diagonal, and earlier keys."""
    values = _aligned(q, x, jnp.tril(alignment))
    return attend(q, slices(x, q.shape[2]), values, mask=masks.causal, impl=impl)


def slices(x: Float[Array, "B T W"], N: int) -> Float[Array, "B T N H"]:
    """The n-th W/N channels of x as head n.  Raises ValueError where N is no divisor of W."""
    if x.shape[-1] % N:
        raise ValueError(f"slices: x has width W = {x.shape[-1]}, expected a multiple of N = {N}")
    return x.reshape(*x.shape[:2], N, x.shape[-1] // N)


def _aligned(q: Q, x: Float[Array, "B T W"], alignment: Alignment) -> Out:
    T = x.shape[1]
    if len(alignment) < T:
        raise ValueError(f"alignment: {alignment.shape}; expected (X,X), X at least T = {T}")
    mixed = einsum("TS,BSW->BTW", alignment[:T, :T], wide(x))
    return slices(mixed, q.shape[2]).astype(x.dtype)


_none = Draw(lambda slot: np.eye(slot.sizes["X"]))
_sizes = {"X": 64, "N": 4, "H": 2}

OPS = (
    Op(
        super_attention,
        papers=(182,),
        reads="all",
        sizes=_sizes,
        limits=(
            Limit(
                "A = 1: slices are keys and values",
                {"alignment": _none},
                lambda q, x: multi_head_attention(q, slices(x, 4), slices(x, 4)),
            ),
        ),
    ),
    Op(
        super_attention_causal,
        papers=(182,),
        sizes=_sizes,
        limits=(
            Limit(
                "A = 1: slices are keys and values",
                {"alignment": _none},
                lambda q, x: causal_attention(q, slices(x, 4), slices(x, 4)),
            ),
        ),
    ),
)
