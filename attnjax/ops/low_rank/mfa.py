"""Multi-matrix factorization attention: many wide query heads through a narrow vector, one key.

    c = norm(x W_c) g,  q_n = c U_n          R numbers a token, then N heads of width H
    k = x W_k,  v = x W_v                    one head of width H for all queries
    out = sum_n softmax(turn(q_n) . turn(k) / sqrt(H)) v O_n           turn: rotary positions
    key reuse:  v = k + alpha * (k M),  M (H,H), alpha (H), so that k before its turn is all a cache
    holds

Paper: Wang et al., "Step-3 is Large yet Affordable: Model-system Co-design for Cost-effective
Decoding", 2025, arXiv:2507.19427, and Hu et al., "Multi-matrix Factorization Attention", 2024,
arXiv:2412.19255.
Limits: key reuse with alpha = 0 is the layer whose values are its keys; alpha = 1 is the layer of
W_v = W_k (1 + M).
Differs: nothing; norm is the root mean square, as in vLLM's Step-3. A step of decoding reads 2 H
numbers a cached token, H with key reuse, whatever N: 2 N operations for each of them.
"""

from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import aligned, einsum, project, rms_norm
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.positions import rotary
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]
One = Float[Array, "B T H"]
Map = Float[Array, "W H"]


class Factorized(NamedTuple):
    """W_c, g, U, W_k and O."""

    down: Float[Array, "W R"]
    gain: Float[Array, " R"]
    up: Float[Array, "R N H"]
    key: Float[Array, "W H"]
    out: Float[Array, "N H W"]


@of_whole_text
@on_any_mesh
def mfa(
    x: Tokens,
    layer: Factorized,
    value: Map,
    *,
    base: float = 10000.0,
    impl: Impl = None,
) -> Tokens:
    """The causal layer with values of their own, of W_v; `base` is that of the rotary positions."""
    return _layer(x, layer, project(x, layer.key), project(x, value), base, impl)


@of_whole_text
@on_any_mesh
def mfa_key_reuse(
    x: Tokens,
    layer: Factorized,
    mix: Float[Array, "H H"],
    alpha: Float[Array, " H"],
    *,
    base: float = 10000.0,
    impl: Impl = None,
) -> Tokens:
    """The causal layer whose values are computed from its keys; alpha is zero at first."""
    key = project(x, layer.key)
    mixed = project(key, mix)
    return _layer(x, layer, key, key + aligned(alpha, mixed) * mixed, base, impl)


def _layer(x: Tokens, layer: Factorized, k: One, v: One, base: float, impl: Impl) -> Tokens:
    R, N, H = layer.up.shape
    c = rms_norm(project(x, layer.down), 1e-5)
    q = project(c * aligned(layer.gain, c), layer.up.reshape(R, N * H))
    q = q.reshape(*x.shape[:2], N, H)
    places = jnp.arange(x.shape[1])
    q, k = (rotary(y, places, base) for y in (q, k[:, :, None]))
    read = attend(q, k, v[:, :, None], mask=masks.causal, impl=impl)
    return einsum("BTNH,NHW->BTW", read, layer.out).astype(x.dtype)


def _values_are_keys(x: Tokens, layer: Factorized) -> Tokens:
    return mfa(x, layer, layer.key)


def _folded(x: Tokens, layer: Factorized, mix: Float[Array, "H H"]) -> Tokens:
    return mfa(x, layer, layer.key + layer.key @ mix)


OPS = (
    Op(mfa, papers=(370,)),
    Op(
        mfa_key_reuse,
        papers=(370,),
        limits=(
            Limit("alpha = 0 leaves keys as values", {"alpha": fill(0.0)}, _values_are_keys),
            Limit("alpha = 1 is a map of its own", {"alpha": fill(1.0)}, _folded),
        ),
    ),
)
