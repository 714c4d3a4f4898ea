"""STAR of SOFTS: series meet in one core, which is made of all of them and given back to each.

    u_c = gelu(x_c W_1 + b_1) W_2 + b_2
    core = sum_c softmax_c(u_c) * u_c, for each channel of the core
    out_c = gelu([x_c; core] W_3 + b_3) W_4 + b_4

In training the core takes each of its channels from one series, drawn by these weights.  The cost
is linear in the number of series.

Paper: Han et al., "SOFTS: Efficient Multivariate Time Series Forecasting with Series-Core Fusion",
2024, arXiv:2404.14197, section 3.3; code: Secilia-Cxy/SOFTS.
Limits: without the core's part of W_3, an MLP of each series.
Differs: the residual, x + out, the norm and the MLP that follow belong to a layer.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import gelu

from attnjax.core.numerics import Affine, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

Series = Float[Array, "B T W"]  # T series, each a token of width W


class Star(NamedTuple):
    """Learned; W + R, the width of a series and of the core, is that of `fuse`."""

    hidden: Annotated[Affine, "W W"]
    offer: Annotated[Affine, "W R"]
    fuse: Annotated[Affine, "W+R W"]
    out: Annotated[Affine, "W W"]


@on_any_mesh
def star_mixer(x: Series, weights: Star, *, key: Array | None = None) -> Series:
    """With a `key` of jax.random the core is drawn, as in training."""
    w = weights
    offers = w.offer(gelu(w.hidden(x), approximate=False))
    core = series_core(offers, key)
    both = jnp.concatenate([wide(x), jnp.broadcast_to(core, offers.shape)], axis=-1)
    return w.out(gelu(w.fuse(both), approximate=False)).astype(x.dtype)


def series_core(offers: Float[Array, "B T R"], key: Array | None = None) -> Float[Array, "B 1 R"]:
    """The mean of what T series offer, weighted by its softmax, or one of T drawn by the weights.

    The gradient of a drawn core reaches what was drawn alone.
    """
    if key is None:
        return jnp.sum(jax.nn.softmax(offers, axis=1) * offers, axis=1, keepdims=True)
    drawn = jax.random.categorical(key, offers, axis=1)
    return jnp.take_along_axis(offers, drawn[:, None], axis=1)


def _no_core(weights: Star) -> Star:
    w = weights.fuse.w
    own = np.arange(len(w))[:, None] < len(weights.hidden.w)
    return weights._replace(fuse=weights.fuse._replace(w=w * own))


def _mlp(x: Series, weights: Star) -> Series:
    own = weights.fuse._replace(w=weights.fuse.w[: x.shape[-1]])
    return weights.out(gelu(own(x), approximate=False))


OPS = (
    Op(
        star_mixer,
        papers=(336,),
        reads="all",
        sizes={"W+R": 15},
        limits=(Limit("no core: an MLP", {"weights": adjusted(_no_core)}, _mlp),),
    ),
)
