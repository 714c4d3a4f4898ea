"""Scaled dot-product attention over several heads, and the sinusoidal position code.

    A_ij = softmax_j(q_i . k_j / sqrt(H)),    out_i = sum_j A_ij v_j
    PE(pos, 2i) = sin(pos / 10000^(2i/width)),    PE(pos, 2i+1) = cos(pos / 10000^(2i/width))

Paper: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, equation 1 and
section 3.5.
Limits: q = 0 gives the mean of the visible values.
Differs: the projections W_Q, W_K, W_V and W_O belong to a layer (attnjax.nn).
"""

import functools

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import repeat_heads
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, K, Out, Q, V


def multi_head_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    """Softmax attention to every key that `mask` allows; GQA and MQA where K < N."""
    return attend(q, k, v, mask=mask, impl=impl)


causal_attention = functools.partial(multi_head_attention, mask=masks.causal)
"""What causal mechanisms are at a limit of theirs."""


def sinusoidal_positions(length: int, width: int) -> Float[Array, "T width"]:
    """The position code of tokens 0 .. length-1, sines and cosines interleaved along `width`.

    PE(pos + s) is PE(pos) with each (sine, cosine) pair turned by an angle that depends on s only.
    """
    if width % 2:
        raise ValueError(f"width: {width}; expected an even number, a sine and a cosine each")
    rates = 10000.0 ** (-jnp.arange(0.0, width, 2.0) / width)
    angles = jnp.arange(0.0, length)[:, None] * rates[None, :]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, width)


def _mean(q: Q, v: V) -> Out:
    mean = repeat_heads(v.mean(axis=1, keepdims=True), q)
    return jnp.broadcast_to(mean, (*q.shape[:3], v.shape[-1]))


OPS = (
    Op(
        multi_head_attention,
        papers=(205,),
        limits=(Limit("q = 0 gives the mean of the values", {"q": fill(0.0)}, _mean),),
    ),
)
