"""Pointing at objects, or at none; and codes of places whose cosines fall off as a Gaussian.

    e_ij = sum_n w_n q_in . k_jn / sqrt(H) + b,    of stopping: 0 in place of the products, so b
    p_i = softmax over the S objects and stopping
    cos(E_a, E_b) = exp(-(a - b)^2 / (2 sigma^2))    for places a, b of an axis

An object's token is a picture of it beside the codes of its row, column and level.

Paper: Fang et al., "OAT: Object-Level Attention Transformer for Gaze Scanpath Prediction", 2024,
arXiv:2407.13335; code: HKUST-NISL/oat_eccv24.
Limits: w = 0 points everywhere alike.
Differs: the code fits E once by gradient descent; here it is the root of the matrix of cosines.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import aligned, einsum, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, PerHead


@on_any_mesh
def object_pointer(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    weights: PerHead,
    bias: Float[Array, "1"],
) -> Float[Array, "B T P"]:
    """Probabilities of S objects and, last, of stopping, P = S + 1, for each decoder step."""
    heads = wide(q) * aligned(weights[:, None], q) / math.sqrt(q.shape[-1])
    logits = einsum("BTNH,BSNH->BTS", heads, k)
    logits = jnp.pad(logits, ((0, 0), (0, 0), (0, 1))) + aligned(bias, logits)
    return jax.nn.softmax(logits, axis=-1).astype(q.dtype)


def gaussian_codes(places: int, width: int, sigma: float = 2.0) -> np.ndarray:
    """E (places,width), of length one; exact where width is at least `places`, else the nearest.

    Codes of an axis of a grid: concatenate those of several.
    """
    at = np.arange(places)
    cosines = np.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
    values, vectors = np.linalg.eigh(cosines)
    root = vectors[:, ::-1] * np.sqrt(np.maximum(values[::-1], 0.0))
    root = np.pad(root, ((0, 0), (0, max(width - places, 0))))[:, :width]
    return root / np.linalg.norm(root, axis=1, keepdims=True)


def _alike(q: Array, k: Array) -> Array:
    return jnp.full((*q.shape[:2], k.shape[1] + 1), 1 / (k.shape[1] + 1))


OPS = (
    Op(
        object_pointer,
        papers=(3,),
        reads="all",
        sizes={"P": 10},
        limits=(Limit("w = 0 points everywhere alike", {"weights": fill(0.0)}, _alike),),
    ),
)
