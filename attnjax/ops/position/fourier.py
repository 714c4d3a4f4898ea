"""Rotary positions whose sines and cosines are Fourier series (FoPE).

    w_m = base^(-2m/H), m < H/2, of which those below 2 pi / L are removed: w_1 .. w_R stay
    sin_n[t,p] = sum_r a_nrp sin(w_r t),    cos_n[t,p] = sum_r b_nrp cos(w_r t),    p < P
    sin_n[t,p] = cos_n[t,p] = 1 for P <= p < H/2: these planes do not tell positions
    x'[p] = x[p] cos[p] - x[p + H/2] sin[p],    x'[p + H/2] = x[p + H/2] cos[p] + x[p] sin[p]

q and k of head n are turned by the same tables; L is the length that the model is trained on.

Paper: Hua et al., "Fourier Position Embedding: Enhancing Attention's Periodic Extension for Length
Generalization", 2024, arXiv:2412.17739; code: TsinghuaC3I/Fourier-Position-Embedding.
Limits: a = b = 1, R = P = H/2, is rotary attention; R = 0 is attention without positions, at twice
the scale.
Differs: the planes without position are those of the code, which pads both tables with ones: their
scores count twice. Zero frequencies alone, sin = 0 and cos = 1, count once: halve those channels of
q. Where query heads share a key, they share its tables; the paper has as many of both.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import clean, einsum, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.positions import rotary
from attnjax.core.sharding import cumsum, on_any_mesh, pvary_like
from attnjax.op import Draw, Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V

Series = Float[Array, "K R P"]


@on_any_mesh
def fourier_position_attention(
    q: Q,
    k: K,
    v: V,
    sines: Series,
    cosines: Series,
    *,
    rates: Float[Array, " R"],
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Softmax attention of q and k turned by `fourier_rotary`, at positions 0, 1, 2, ...

    sines, cosines   a and b: the paper draws them (`fourier_coefficients`) and does not train them
    rates            w, `fourier_rates`
    """
    turn = lambda x: fourier_rotary(x, places(x, impl), sines, cosines, rates).astype(x.dtype)
    return attend(turn(q), turn(k), v, mask=mask, impl=impl)


def places(x: Array, impl: Impl) -> Array:
    """The positions of tokens x (B,T,...) in their text, (B,T), wherever `impl` has the tokens."""
    ones = pvary_like(jnp.ones(x.shape[:2], jnp.int32), x)
    return cumsum(ones, impl) - 1


def fourier_rotary(
    x: Float[Array, "B T N H"],
    positions: Array,
    sines: Series,
    cosines: Series,
    rates: Float[Array, " R"],
) -> Float[Array, "B T N H"]:
    """x turned by tables of its heads, or of groups of heads, at positions (T,) or (B,T); wide.

    Raises ValueError for shapes that do not fit.
    """
    N, H = x.shape[2:]
    heads, R, P = sines.shape
    if sines.shape != cosines.shape or N % heads or rates.shape != (R,) or H % 2 or 2 * P > H:
        raise ValueError(
            f"sines, cosines, rates: {sines.shape}, {cosines.shape}, {rates.shape}; expected "
            f"(K,R,P) twice and (R,), K a divisor of N = {N} and P at most H/2 of an even H = {H}"
        )
    x, bad = clean(wide(x))
    at = jnp.atleast_2d(jnp.asarray(positions, x.dtype))
    angles = at[..., None] * wide(rates)[None, None]  # (B|1,T,R)

    def table(waves: Array, weights: Series) -> Array:
        told = einsum("BTR,KRP->BTKP", waves, weights)
        every = jnp.pad(told, [(0, 0)] * 3 + [(0, H // 2 - P)], constant_values=1.0)
        return jnp.repeat(every, N // heads, axis=2)

    sin, cos = table(jnp.sin(angles), sines), table(jnp.cos(angles), cosines)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1) + bad[..., None]


def fourier_rates(H: int, length: int, base: float = 10000.0) -> np.ndarray:
    """The rates of rotary positions that turn once at least within `length` tokens, (R,)."""
    rates = base ** (-np.arange(H // 2) / (H // 2))
    return rates[rates >= 2 * np.pi / length]


def fourier_coefficients(
    key: Array, heads: int, R: int, H: int, gain: float = 0.3
) -> tuple[Series, Series]:
    """Random series around single waves: a and b for R rates and P = min(R, H/4) planes.

    Normal numbers of deviation gain * sqrt(2 / ((R + heads) P)), plus one where plane p has the
    rate p * ceil(R/P).  The paper's gain is 0.3, 0.4 and 0.6 for 60M, 180M and 1.2B parameters.
    """
    P = min(R, H // 4)
    wave = jnp.arange(R)[:, None] == jnp.arange(P) * -(-R // max(P, 1))
    deviation = gain * math.sqrt(2 / ((R + heads) * max(P, 1)))
    sines, cosines = deviation * jax.random.normal(key, (2, heads, R, P)) + wave
    return sines, cosines


def _rotary(q: Q, k: K, v: V) -> Out:
    turn = lambda x: rotary(x, jnp.arange(x.shape[1]))
    return multi_head_attention(turn(q), turn(k), v)


_waves = by_sizes(
    lambda z: np.broadcast_to(np.eye(z["H"] // 2), (z["K"], z["H"] // 2, z["H"] // 2))
)

OPS = (
    Op(
        fourier_position_attention,
        papers=(216,),
        sizes={"R": 3, "P": 2},
        draw={"rates": by_sizes(lambda z: np.array([1.0, 0.3, 0.05])[: z["R"]])},
        limits=(
            Limit(
                "single waves of all rates are rotary positions",
                {
                    "sines": _waves,
                    "cosines": _waves,
                    "rates": by_sizes(lambda z: fourier_rates(z["H"], 10**6)),
                },
                _rotary,
            ),
            Limit(
                "without a rate no position is told, and all scores count twice",
                {name: Draw(lambda slot: slot.normal("K 0 0")) for name in ("sines", "cosines")}
                | {"rates": Draw(lambda slot: slot.normal("0"))},
                lambda q, k, v: multi_head_attention(2 * q, k, v),
            ),
        ),
    ),
)
