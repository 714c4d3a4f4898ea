"""Aggregated attention: one softmax over the cells around and over means of the whole map.

    q = unit(x W_q + b),  k = unit(x W_k + b),  v = x W_v + b,  z = the same maps of pooled tokens
    s_ij = log(n_i) softplus(t) (q_i + e) . k_j  +  bias[j - i],       j in the window of i
    s_ip = log(n_i) softplus(t) (q_i + e) . k_p  +  net(i - p),        p a pooled token
    A_i  = softmax over both;   n_i how many keys these are
    o_i  = sum_j (A_ij + q_i . u[j - i] + c[j - i]) v_j + sum_p A_ip v_p,    out = o W_o + b_o
    pooled tokens = norm(mean over each part of the map of gelu(x W_r + b_r))

Windows are X x X cells around a cell, and end with the map. u and c make a weight of a place out of
the query alone, beside the softmax. t begins where softplus(t) = 1/0.24. The last stage has all
keys in place of both sets: `attend((q + e) softplus(t) log(T), k, v, mods=(mods.pair_bias(bias),),
scale=1.0)` with `bias = pooled_bias(net, shape, shape)`.

Paper: Shi, "TransNeXt: Robust Foveal Visual Perception for Vision Transformers", 2023,
arXiv:2311.17132, section 3; code: DaiShiResearch/TransNeXt.
Limits: with softplus(t) = 0, no biases, u and c zero it is the mean of both sets.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import features, mods
from attnjax.core.numerics import Affine, aligned, einsum, layer_norm, wide
from attnjax.core.pairwise.attend import Impl, attend_state, join_states
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, Sizes, adjusted, by_sizes, grid, square_grid
from attnjax.ops.local_structured.grids import Boxes, PlaceNet, adaptive_means, boxes, run_means
from attnjax.typing import Array, Float, PerHead

Cells = Float[Array, "B T W"]
Heads = Float[Array, "B T N H"]


class Heading(NamedTuple):
    """x -> x w + b for each head."""

    w: Float[Array, "W N H"]
    b: Float[Array, "N H"]

    def __call__(self, x: Array) -> Array:
        y = einsum("BTW,WNH->BTNH", x, self.w)
        return y + aligned(self.b, y)


class Pooling(NamedTuple):
    """What pooled tokens go through, before the mean and behind it."""

    inner: Annotated[Affine, "W W"]
    gain: Float[Array, " W"]
    shift: Float[Array, " W"]


class Aggregated(NamedTuple):
    """Weights of N heads: t, e, bias, u and c as above, `net` of places."""

    q: Heading
    k: Heading
    v: Heading
    t: PerHead
    e: Float[Array, "N H"]
    bias: Float[Array, "N X X"]
    u: Float[Array, "N H X X"]
    c: Float[Array, "N X X"]
    pooling: Pooling
    net: PlaceNet
    out: Float[Array, "N H W"]
    out_bias: Float[Array, " W"]


_EPS = 1e-5


@of_whole_text
@on_any_mesh
def aggregated_attention(
    x: Cells, weights: Aggregated, *, shape: Sequence[int], pools: Sequence[int], impl: Impl = None
) -> Cells:
    """Attention of the cells of a map (rows, columns), row-major, to windows and pooled tokens.

    `pools` are how many parts rows and columns have, an eighth, a quarter or half of `shape`.
    `impl` is of the pooled part: a window is few keys, and nothing to spread over devices.
    Raises ValueError for windows that are not odd, and where the cells are not T.
    """
    w, X = weights, weights.bias.shape[-1]
    if X % 2 == 0 or len(shape) != 2:
        raise ValueError(f"bias, shape: X = {X}, {tuple(shape)}; expected an odd X, two axes")
    near, (B, T, _), N = boxes(shape, 1, halo=X // 2), x.shape, w.t.shape[0]
    flat = lambda a: wide(a).reshape(*a.shape[:-2], X * X)
    own = wide(x)
    q, k, v = features.cosine(w.q(own)), features.cosine(w.k(own)), w.v(own)
    pooled = pooled_tokens(own, w.pooling, shape, pools)
    scaled = (q + aligned(w.e, q)) * sharpness(w.t, near, math.prod(pools), q.dtype)
    of_window = attend_state(
        near.take(scaled),
        near.take_keys(k),
        near.take_keys(v),
        mods=(mods.pair_bias(flat(w.bias)[None, :, None]),),
        mask=near.mask(B),
        scale=1.0,
    )
    of_pools = attend_state(
        scaled,
        features.cosine(w.k(pooled)),
        w.v(pooled),
        mods=(mods.pair_bias(pooled_bias(w.net, shape, pools)[None]),),
        scale=1.0,
        impl=impl,
    )
    together = lambda a: jnp.swapaxes(a.reshape(B, T, N, a.shape[-1]), 1, 2)
    both = join_states(jax.tree.map(together, of_window), of_pools)
    places = einsum("BTNH,NHX->BTNX", q, flat(w.u)) + flat(w.c)[None, None]
    values = near.take_keys(v).reshape(B, T, X * X, N, v.shape[-1])
    out = both + einsum("BTNX,BTXNH->BTNH", places, values)
    out = einsum("BTNH,NHW->BTW", out, w.out)
    return (out + aligned(w.out_bias, out)).astype(x.dtype)


def pooled_tokens(
    x: Cells, weights: Pooling, shape: Sequence[int], pools: Sequence[int]
) -> Float[Array, "B P W"]:
    """The pooled tokens, wide."""
    mean = adaptive_means(jax.nn.gelu(weights.inner(x), approximate=False), shape, pools)
    mean = layer_norm(mean, _EPS)
    return mean * aligned(weights.gain, mean) + aligned(weights.shift, mean)


def pooled_bias(net: PlaceNet, shape: Sequence[int], pools: Sequence[int]) -> Float[Array, "N T P"]:
    """What the network says of each cell's place less that of each pooled token, the mean place."""
    centers = [run_means(E, P) @ np.arange(E) for E, P in zip(shape, pools, strict=True)]
    places = [_flat(np.meshgrid(*axes, indexing="ij")) for axes in (map(np.arange, shape), centers)]
    offsets = places[0][:, None] - places[1][None]
    some, which = np.unique(offsets.reshape(-1, 2), axis=0, return_inverse=True)
    table = net(some, shape)  # the same offsets once
    return jnp.moveaxis(table[which.reshape(offsets.shape[:2])], -1, 0)


def _flat(axes: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(axes, axis=-1).reshape(-1, len(axes))


def sharpness(t: PerHead, near: Boxes, pooled: int, dtype: jnp.dtype) -> Array:
    """log(n_i) softplus(t), (1,T,N,1)."""
    counts = (near.parts[1] == near.parts[0]).sum(1) + pooled
    logs = jnp.asarray(np.log(counts), dtype)
    return logs[None, :, None, None] * jax.nn.softplus(wide(t))[None, None, :, None]


def _level(weights: Aggregated) -> Aggregated:
    w = weights
    outer = Affine(0 * w.net.outer.w, 0 * w.net.outer.b)
    return w._replace(
        t=0 * w.t - 200, bias=0 * w.bias, u=0 * w.u, c=0 * w.c, net=w.net._replace(outer=outer)
    )


def _means(x: Cells, weights: Aggregated, shape: Sequence[int], pools: Sequence[int]) -> Array:
    w, T = weights, x.shape[1]
    pooled = w.v(pooled_tokens(x, w.pooling, shape, pools)).sum(1, keepdims=True)
    cells = np.stack(np.unravel_index(np.arange(T), shape), -1)
    apart = abs(cells[:, None] - cells).max(-1)
    near = jnp.asarray(apart <= w.bias.shape[-1] // 2, x.dtype)
    count = near.sum(1) + math.prod(pools)
    mean = (jnp.einsum("TS,BSNH->BTNH", near, w.v(x)) + pooled) / count[None, :, None, None]
    return jnp.einsum("BTNH,NHW->BTW", mean, w.out) + w.out_bias


def _pools(z: Sizes) -> tuple[int, ...]:
    return tuple(min(2, n) for n in grid(z["T"]))


OPS = (
    Op(
        aggregated_attention,
        papers=(64,),
        reads="all",
        sizes={"X": 3, "E": 5},
        draw={"shape": square_grid, "pools": by_sizes(_pools)},
        limits=(Limit("level scores are means", {"weights": adjusted(_level)}, _means),),
    ),
)
