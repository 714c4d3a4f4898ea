"""Head tokens: a summary of each head's channels joins the tokens, so that heads meet.

    m_n = mean over tokens of the n-th H = W/N channels of x,    u_n = m_n W_h + b_h  (W wide)
    t_n = gelu(norm of each H channels of u_n) + places_n
    [y; z] = multi-head self-attention of [x; t_1; ..; t_N], with its output projection
    out = y, but for the class token, the first: y_1 + mean of z

The feed-forward layer beside it (DAFF) is a convolution that speaks to the class token:

    c = gelu(tokens W_1),  c = (c + gelu(depthwise convolution of c)) W_3
    class token times W_e gelu(mean of c W_c)

Paper: Lu et al., "Bridging the Gap Between Vision Transformers and Convolutional Neural Networks on
Small Datasets", 2022, arXiv:2210.05958, section 3; code: ArieSeirack/DHVT.
Limits: none but the oracle; patches keep to no order.
Differs: batch normalizations of the code are in the weights and biases, as they are after training.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.numerics import Affine, aligned, layer_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Op, by_sizes, grid
from attnjax.typing import Array, Float

gelu = partial(jax.nn.gelu, approximate=False)
Tokens = Float[Array, "B T W"]


class HeadTokens(NamedTuple):
    """Weights of N heads of width H, N H = W; `places` tells heads apart."""

    summary: Annotated[Affine, "H W"]
    scale: Float[Array, " H"]
    shift: Float[Array, " H"]
    places: Float[Array, "N W"]
    q: Annotated[Affine, "W W"]
    k: Annotated[Affine, "W W"]
    v: Annotated[Affine, "W W"]
    out: Annotated[Affine, "W W"]


@of_whole_text
@on_any_mesh
def head_token_attention(x: Tokens, weights: HeadTokens, *, impl: Impl = None) -> Tokens:
    """Self-attention of T tokens, the first the class token, and N head tokens; T are left."""
    w, T = weights, x.shape[1]
    (N, W), H = w.places.shape, len(w.scale)
    if N * H != W or x.shape[2] != W:
        raise ValueError(f"places, scale: {N, W}, ({H},); expected N H = W = {x.shape[2]}")
    every = jnp.concatenate([wide(x), _head_tokens(wide(x), w)], axis=1)
    q, k, v = (f(every).reshape(*every.shape[:2], N, H) for f in (w.q, w.k, w.v))
    out = w.out(attend(q, k, v, impl=impl).reshape(every.shape))
    first = out[:, :1] + out[:, T:].mean(1, keepdims=True)
    return jnp.concatenate([first, out[:, 1:T]], axis=1).astype(x.dtype)


def _head_tokens(x: Tokens, w: HeadTokens) -> Float[Array, "B N W"]:
    N, W = w.places.shape
    means = x.mean(1).reshape(len(x), N, W // N)
    parts = w.summary(means).reshape(len(x), N, N, W // N)
    parts = layer_norm(parts, 1e-5)
    parts = gelu(parts * aligned(w.scale, parts) + aligned(w.shift, parts))
    return parts.reshape(len(x), N, W) + wide(w.places)[None]


class Aggregation(NamedTuple):
    """Maps W -> E -> W with a kernel (X,X,E) between, and W -> M -> W for the class token."""

    inner: Annotated[Affine, "W E"]
    kernel: Float[Array, "X X E"]
    kernel_bias: Float[Array, " E"]
    outer: Annotated[Affine, "E W"]
    squeeze: Annotated[Affine, "W M"]
    excite: Annotated[Affine, "M W"]


@on_any_mesh
def dynamic_aggregation(x: Tokens, weights: Aggregation, *, shape: Sequence[int]) -> Tokens:
    """The feed-forward layer of a class token and the cells of a map, T = 1 + rows * columns."""
    w = weights
    if math.prod(shape) != x.shape[1] - 1 or len(shape) != 2:
        raise ValueError(f"shape: {tuple(shape)}; expected T - 1 = {x.shape[1] - 1} cells")
    first, cells = wide(x[:, :1]), wide(x[:, 1:])
    c = gelu(w.inner(cells))
    image = c.reshape(len(x), *shape, c.shape[-1])
    c = c + gelu(depthwise(image, w.kernel, w.kernel_bias)).reshape(c.shape)
    c = w.outer(c)
    mean = c.sum(1, keepdims=True) / max(c.shape[1], 1)
    first = first * w.excite(gelu(w.squeeze(mean)))
    return jnp.concatenate([first, c], axis=1).astype(x.dtype)


_cells = by_sizes(lambda z: grid(z["T"] - 1) if z["T"] > 1 else (0, 0))

OPS = (
    Op(head_token_attention, papers=(327,), reads="all", sizes={"N": 4, "H": 2}),
    Op(
        dynamic_aggregation,
        papers=(327,),
        reads="all",
        sizes={"E": 5, "X": 3, "M": 2},
        draw={"shape": _cells},
    ),
)
