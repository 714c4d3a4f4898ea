"""YOSO: weights are chances that a hash sees q and k alike; in linear time, how often hashes did.

    w_ij  = (1 - arccos(cos(q_i, k_j)) / pi)^tau     that R = tau random planes part them nowhere
    w^_ij = 1/M sum_h [code_h(q_i) = code_h(k_j)]    code_h the sides of q, k of R planes, h = 1..M
    out_i = u_i / |u_i|,  u_i = sum_j w_ij v_j, or of w^_ij

Paper: Zeng et al., "You Only Sample (Almost) Once: Linear Cost Self-Attention Via Bernoulli
Sampling", 2021, arXiv:2111.09714, section 3; code: Hugging Face's transformers.
Limits: q = 0 gives the direction of the sum of values; planes that part nothing give it, too.
Differs: nothing in the formulas. As there, the derivative of w by the cosine is taken to be
tau w / 2, a lower bound of the true one, which is infinite where q and k are parallel. A hash has
none: `yoso + lax.stop_gradient(yoso_sampled - yoso)` has those of w, as the released code without
`lsh_backward`. Its gradients by hashing are left out, as is the convolution of values that a module
adds.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import features, masks, mods, normalizers
from attnjax.core.numerics import einsum, finite, repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, Int, K, Out, Q, V


@on_any_mesh
def yoso(
    q: Q,
    k: K,
    v: V,
    *,
    tau: int = 8,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Attention with the expected weights w of hashes of tau planes; vectors of length 1."""
    if tau < 1:
        raise ValueError(f"tau: {tau}; expected at least 1")
    out = attend(
        features.cosine(wide(q)),
        features.cosine(wide(k)),
        wide(v),
        mods=(mods.mod(functools.partial(_collision, tau)),),
        mask=mask,
        normalizer=normalizers.identity,
        scale=1.0,
        impl=impl,
    )
    return features.cosine(out).astype(q.dtype)


def _collision(tau: int, cosine: Array) -> Array:
    """w, of derivative tau w / 2."""
    held = lax.stop_gradient(cosine)
    weight = (1.0 - jnp.arccos(jnp.clip(held, -1.0, 1.0)) / math.pi) ** tau
    return weight * (1.0 + tau / 2 * (cosine - held))


@on_any_mesh
def yoso_sampled(q: Q, k: K, v: V, planes: Float[Array, "M H R"]) -> Out:
    """Attention with the sampled weights w^ in O(T M (D + H R)), without gradients to q and k.

    planes   standard normal numbers, for M hashes of R planes each; all heads share them
    """
    if planes.ndim != 3 or planes.shape[1] != q.shape[-1] or planes.shape[2] > 16:
        raise ValueError(
            f"planes: shape {planes.shape}; expected (M,H,R) with H = {q.shape[-1]}, R at most 16"
        )
    (B, _, N, _), (M, _, R) = q.shape, planes.shape
    b, _, n, m = np.ogrid[:B, :1, :N, :M]
    values = repeat_heads(wide(v), q)[:, :, :, None]
    own = repeat_heads(_codes(k, planes), q)
    table = jnp.zeros((B, N, M, 1 << R, v.shape[-1]), values.dtype)
    table = table.at[b, n, m, own].add(values)
    out = table[b, n, m, _codes(q, planes)].sum(3)
    return features.cosine(out).astype(q.dtype)


def _codes(x: Q, planes: Float[Array, "M H R"]) -> Int[Array, "B T N M"]:
    """The number that the sides of each hash's planes spell."""
    side = einsum("BTNH,MHR->BTNMR", lax.stop_gradient(finite(x)), planes) > 0
    bits = 1 << np.arange(planes.shape[2], dtype=np.int32)
    return jnp.where(side, bits.reshape(1, 1, 1, 1, -1), 0).sum(-1)


def _direction(q: Q, k: K, v: V) -> Out:
    total = repeat_heads(v, q).sum(1, keepdims=True)
    return jnp.broadcast_to(features.cosine(total), (*q.shape[:3], v.shape[-1]))


_SLOPE = "by definition the derivative of w is not that of its value, but a bound of it"

OPS = (
    Op(
        yoso,
        papers=(165,),
        draw={"tau": 3},
        limits=(
            Limit("q = 0 gives the direction of the sum of values", {"q": fill(0.0)}, _direction),
        ),
        exempt={law: _SLOPE for law in ("gradients", "jvp")},
    ),
    Op(
        yoso_sampled,
        papers=(165,),
        reads="all",
        sizes={"R": 2},
        limits=(
            Limit("planes that part nothing weigh all alike", {"planes": fill(0.0)}, _direction),
        ),
    ),
)
