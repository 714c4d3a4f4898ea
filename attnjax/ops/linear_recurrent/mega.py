"""Mega: gated single-head attention over a moving average of its input.

    X' = silu(EMA(X)),    Z = silu(X' W_z),    Q = kappa_q Z + mu_q,    K = kappa_k Z + mu_k
    V = silu(X W_v),    O = f(Q K^T / tau + b_rel) V,    tau = sqrt(width of Z) for softmax
    H = silu(X' W_h + (silu(X' W_r) * O) U_h),    p = sigmoid(X' W_p),    out = p H + (1 - p) X
    f(s) = (1 + erf((s - sqrt(1/2)) / (sigma sqrt 2))) / 2, sigma^2 = 1 / (4 pi),    tau = keys seen

Paper: Ma et al., "Mega: Moving Average Equipped Gated Attention", 2022, arXiv:2209.10655,
sections 3.2 to 3.4; code: facebookresearch/mega.
Limits: p = 0 returns X; chunks of T tokens are full attention.
Differs: the paper prints X' = EMA(X) (`activation=features.identity`, weights
`damped_ema.as_printed`); the
released code, which made its numbers, has silu there. Its constants of f are rounded.
"""

import math
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid, silu

from attnjax.core import features, masks, normalizers
from attnjax.core.features import FeatureMap
from attnjax.core.mods import relative_bias
from attnjax.core.normalizers import Normalizer
from attnjax.core.numerics import Affine, aligned, matmul, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.recurrence.documents import Documents, compact
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.linear_recurrent.damped_ema import EMA, X, damped_ema_convolution, gates_in_range
from attnjax.typing import Array, Float


class Scale(NamedTuple):
    """z -> kappa z + mu, elementwise."""

    kappa: Float[Array, " Z"]
    mu: Float[Array, " Z"]

    def __call__(self, z: Array) -> Array:
        return z * aligned(self.kappa, z) + aligned(self.mu, z)


class Weights(NamedTuple):
    """Maps between widths W (the model), Z (queries and keys) and E (values)."""

    ema: EMA
    z: Annotated[Affine, "W Z"]
    q: Scale
    k: Scale
    v: Annotated[Affine, "W E"]
    reset: Annotated[Affine, "W E"]
    update: Annotated[Affine, "W W"]
    h: Annotated[Affine, "W W"]
    u: Float[Array, "E W"]
    bias: Float[Array, " R"]  # of the relative positions, see relative_bias


@of_whole_text
@on_any_mesh
def mega(
    x: X,
    weights: Weights,
    *,
    chunk: int | None = None,
    documents: Documents | None = None,
    normalizer: Normalizer = normalizers.laplace,
    activation: FeatureMap = silu,
    impl: Impl = None,
) -> X:
    """Causal; with `chunk`, attention stays inside chunks of so many tokens (Mega-chunk).

    `documents` are ids as `linear_attend` takes them; chunks begin with each.
    """
    w, given, T = weights, x, x.shape[1]
    row = compact(documents, x.shape[:2])
    x = x if row is None else row.together(x)
    ids = None if row is None else row.ids
    average = activation(damped_ema_convolution(wide(x), w.ema, documents=ids))
    z = silu(w.z(average))
    index = np.arange(T) if row is None else row.of.index
    keys_seen = index + 1
    mask = masks.causal
    if ids is not None:
        mask &= masks.document(ids)
    if chunk is not None:
        keys_seen = index % chunk + 1
        mask &= masks.document((np.arange(T) - index) + index // chunk)
    if normalizer.denominator is None:  # a mean over the keys, for no sum of weights divides
        tau = jnp.asarray(keys_seen, z.dtype)[..., None]
        tau = tau if tau.ndim == 3 else tau[None]
    else:
        tau = math.sqrt(z.shape[-1])
    o = attend(
        _one_head(w.q(z) / tau),
        _one_head(w.k(z)),
        _one_head(silu(w.v(x))),
        mods=(relative_bias(w.bias),),
        mask=mask,
        normalizer=normalizer,
        scale=1.0,
        impl=impl,
    )[:, :, 0]
    gated = matmul(silu(w.reset(average)) * o, w.u)
    p = sigmoid(w.update(average))
    out = (p * silu(w.h(average) + gated) + (1 - p) * wide(x)).astype(given.dtype)
    return out if row is None else row.apart(out)


def _one_head(x: Float[Array, "B T H"]) -> Float[Array, "B T 1 H"]:
    return x[:, :, None]


def _ema_in_range(weights: Weights) -> Weights:
    return weights._replace(ema=gates_in_range(weights.ema))


def _closed(weights: Weights) -> Weights:
    update = weights.update._replace(b=weights.update.b - 100.0)
    return _ema_in_range(weights)._replace(update=update)


def _whole(x: X, weights: Weights) -> X:
    return mega(x, weights)


OPS = (
    Op(
        mega,
        papers=(226,),
        draw={"weights": adjusted(_ema_in_range), "chunk": 4},
        sizes={"Z": 6, "E": 8},
        limits=(
            Limit("p = 0 returns x", {"weights": adjusted(_closed)}, features.identity),
            Limit("one chunk", {"chunk": 9}, _whole),
        ),
    ),
)
