"""Attention by a mixture of Gaussians over places that only moves ahead (GMM attention, V2b).

    q_i = [w_m, d_m, g_m] of M components, from the state of a decoder at step i
    mu_im = sum_{l <= i} softplus(d_lm),    sigma_im = softplus(g_im)
    p_ijm = exp(-(j - mu_im)^2 / (2 sigma_im^2)) / sqrt(2 pi sigma_im^2)
    out_i = sum_j v_j sum_m softmax_m(w_i) p_ijm

Weights are not normalized over places, and no content of the keys enters them. A text of S places
is read in O(T S) time without an array of that size.

Paper: Battenberg et al., "Location-Relative Attention Mechanisms For Robust Long-Form Speech
Synthesis", 2019, arXiv:1910.10288, section 2.
Limits: steps of zero length are a Gaussian around the first place.
Differs: the network that gives q is a layer's, W_2 tanh(W_1 s + b_1) + b_2, with b_2 for steps of
about 1 and deviations of about 10 at first. Coqui's `GravesAttention` has sigmoids in its place.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods, normalizers
from attnjax.core.numerics import clean, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import cumsum, on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float


@on_any_mesh
def gmm_attention(
    q: Float[Array, "B T M 3"],
    v: Float[Array, "B S D"],
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Float[Array, "B T D"]:
    """What decoder steps read from S places; M components each with weight, step and width.

    `mask` hides padding: its weights are zero, and others do not grow.
    """
    x, bad = clean(wide(q))
    share = jax.nn.softmax(x[..., 0], axis=2)
    mean = cumsum(jax.nn.softplus(x[..., 1]) + bad, impl)
    precision = 1.0 / jax.nn.softplus(x[..., 2])
    height = share * precision / math.sqrt(2 * math.pi)
    component = mods.mod(_gaussian, query=(height, mean, precision), positions=True)
    nothing = jnp.zeros((*x.shape[:3], 1), x.dtype)
    out = attend(
        nothing,
        jnp.zeros((*v.shape[:2], 1, 1), x.dtype),
        wide(v)[:, :, None],
        mods=(component,),
        mask=mask,
        normalizer=normalizers.identity,
        impl=impl,
    )
    return out.sum(2).astype(v.dtype)


def _gaussian(
    score: Array, q_pos: Array, k_pos: Array, height: Array, mean: Array, precision: Array
) -> Array:
    """A component's weight of a place, in place of the score."""
    # rows that fill a tile hold zeros
    far = (jnp.where(precision > 0, k_pos.astype(score.dtype), 0.0) - mean) * precision
    return height * jnp.exp(-0.5 * far * far)


def _around_the_first(q: Array, v: Array) -> Array:
    share, deviation = jax.nn.softmax(q[..., 0], axis=2), jax.nn.softplus(q[..., 2])
    places = jnp.arange(v.shape[1])[:, None]
    weights = share[:, :, None] * jax.scipy.stats.norm.pdf(places, 0.0, deviation[:, :, None])
    return jnp.einsum("btsm,bsd->btd", weights, v)


def _standing(q: np.ndarray) -> np.ndarray:
    return np.stack([q[..., 0], np.full(q.shape[:-1], -90.0), q[..., 2]], axis=-1)


OPS = (
    Op(
        gmm_attention,
        papers=(75,),
        limits=(
            Limit(
                "steps of zero length: Gaussians around the first place",
                {"q": adjusted(_standing)},
                _around_the_first,
            ),
        ),
        exempt={
            "empty_rows": "the step of a query that sees nothing moves the means of later ones"
        },
    ),
)
