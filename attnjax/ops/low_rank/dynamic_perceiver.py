"""Dynamic Perceiver: latents and a feature map that read from each other, layer by layer.

    layer(x, y) = x' + mlp(norm x'),  x' = x + W_o softmax(q k^T / sqrt(R)) v + b_o
                  q = W_q norm x,  k = W_k norm y + E,  v = W_v norm y,  one head of width R
    write   the map reads from the latents: layer(map, latents), R an eighth of W, without E
    read    latents read from the map: layer(latents, pooled_map(map)), E a learned table of cells
    pooled_map   means of map + conv(map) over a grid of size x size windows, conv depthwise, 7 x 7

A stage writes, reads, and lets the latents attend to each other. Between stages a norm and a map
over the latents' number, then one over their width, halve and widen them. Classifiers sit behind
the later stages of the latents, on the map, and on both; one is the last whose surest class is
above its threshold.

Paper: Han et al., "Dynamic Perceiver for Efficient Visual Recognition", 2023, arXiv:2306.11248,
section 3; code: LeapLabTHU/Dynamic_Perceiver.
Limits: an output projection and an mlp of zero leave x.
Differs: nothing.
"""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.nn import gelu

from attnjax.core.numerics import Affine, aligned, einsum, project, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.scan.convolution import depthwise
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]


class CrossLayer(NamedTuple):
    """Weights; Y is the width of what is read, R that of the head, E = W in the paper."""

    q_norm: Norm
    kv_norm: Annotated[Norm, "Y"]
    q: Float[Array, "W R"]
    k: Float[Array, "Y R"]
    v: Float[Array, "Y R"]
    out: Annotated[Affine, "R W"]
    mlp_norm: Norm
    up: Annotated[Affine, "W E"]
    down: Annotated[Affine, "E W"]


@on_any_mesh
def cross_layer(
    x: Tokens,
    y: Float[Array, "B S Y"],
    weights: CrossLayer,
    *,
    table: Float[Array, "S R"] | None = None,
    impl: Impl = None,
) -> Tokens:
    """layer(x, y); `table` is E, one row for each token of y. Time O(T S)."""
    w = weights
    source = w.kv_norm.of_tokens(y)
    k, v = project(source, w.k), project(source, w.v)
    if table is not None:
        k = k + aligned(table, k)
    q = project(w.q_norm.of_tokens(x), w.q)
    read = attend(*(z[:, :, None] for z in (q, k, v)), impl=impl)[:, :, 0]
    x1 = wide(x) + w.out(read)
    inner = gelu(w.up(w.mlp_norm.of_tokens(x1)), approximate=False)
    return (x1 + w.down(inner)).astype(x.dtype)


@on_any_mesh
def pooled_map(
    image: Float[Array, "B rows columns W"],
    kernel: Float[Array, "k k W"],
    bias: Float[Array, " W"],
    *,
    size: int = 7,
) -> Float[Array, "B S W"]:
    """What latents read of a map (B,rows,columns,W): S = size^2 means, so as many for any map."""
    if size < 1:
        raise ValueError(f"size: {size}; expected at least 1")
    mixed = wide(image) + depthwise(image, kernel, bias)
    rows, columns = (_windows(n, size) for n in image.shape[1:3])
    means = einsum("rR,cC,BRCW->BrcW", rows, columns, mixed)
    return means.reshape(len(image), size * size, image.shape[-1]).astype(image.dtype)


def _windows(n: int, size: int) -> Float[Array, "size n"]:
    """Rows that average n cells from floor(i n / size) up to ceil((i + 1) n / size)."""
    i, cell = np.arange(size)[:, None], np.arange(n)
    inside = (cell >= i * n // size) & (cell < -(-(i + 1) * n // size))
    return jnp.asarray(inside / inside.sum(1, keepdims=True))


def _silent(w: CrossLayer) -> CrossLayer:
    zero = lambda affine: Affine(0 * affine.w, 0 * affine.b)
    return w._replace(out=zero(w.out), down=zero(w.down))


OPS = (
    Op(
        cross_layer,
        papers=(399,),
        reads="all",
        sizes={"Y": 6, "E": 10},
        limits=(Limit("silent branches leave x", {"weights": adjusted(_silent)}, lambda x: x),),
    ),
    Op(
        pooled_map,
        papers=(399,),
        draw={"size": 2},
        sizes={"rows": 5, "columns": 4, "k": 3},
    ),
)
