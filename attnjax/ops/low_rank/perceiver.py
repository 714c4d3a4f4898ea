"""Perceiver: a few latent vectors read an input of any size by cross-attention.

    z_l = sum_j softmax_j(q_l . k_j / sqrt(H)) v_j,    q from latents 1 .. L, k and v from S inputs
    features of a place x in [-1,1]^d:  x_a, sin(pi f_b x_a), cos(pi f_b x_a) for each axis a,
                                        f_1 = 1, ..., f_bands = rate_a / 2 equally spaced

Paper: Jaegle et al., "Perceiver: General Perception with Iterative Attention", 2021,
arXiv:2103.03206, section 3.
Limits: L = S latents that are the inputs: self-attention.
Differs: the network around it, which reads, lets the latents attend to each other, and reads again,
is `attnjax.nn.Perceiver`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


def perceiver_attention(
    q: Q | Float[Array, "L N H"],
    k: K,
    v: V,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """What each latent reads from the inputs, time O(L S).

    `q` are the latents' queries: (L,N,H), learned and the same for all examples, or (B,L,N,H).
    The order of the inputs does not matter: places are features of theirs, `fourier_features`.
    """
    if q.ndim == 3:
        q = jnp.broadcast_to(q, (k.shape[0], *q.shape))
    return attend(q, k, v, mask=mask, impl=impl)


def fourier_features(
    x: Float[Array, "... d"], bands: int, rate: float | Sequence[float]
) -> Float[Array, "... F"]:
    """Features of places in [-1,1]^d, (...,F) with F = d (2 bands + 1), wide: places first.

    `rate` is how finely each axis is sampled, its number of cells: the highest band, rate / 2, is
    then its Nyquist frequency.
    """
    if bands < 1:
        raise ValueError(f"bands: {bands}; expected at least 1")
    x = wide(x)
    highest = np.broadcast_to(np.asarray(rate, np.float64), x.shape[-1:]) / 2
    frequencies = jnp.asarray(np.linspace(1.0, highest, bands, axis=-1), x.dtype)  # (d,bands)
    angle = (np.pi * frequencies * x[..., None]).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([x, jnp.sin(angle), jnp.cos(angle)], axis=-1)


OPS = (
    Op(
        perceiver_attention,
        papers=(228,),
        limits=(Limit("latents that are the inputs: self-attention", {}, multi_head_attention),),
    ),
)
