"""Attention whose tokens have projections of their own kind: experts for vision and for text.

    q, k, v = (1 - m) x W^text + m x W^vision,    m = 1 for visual tokens, 0 for text
    o = causal softmax attention over the mixed sequence
    out = (1 - m) o W_O^text + m o W_O^vision

Visual experts start as copies of the text's and are trained alone first: text alone is as before.

Paper: Luo et al., "Mono-InternVL-1.5: Towards Cheaper and Faster Monolithic Multimodal Large
Language Models", 2025, arXiv:2507.12566.
Limits: equal experts are softmax attention.
Differs: the released code, OpenGVLab/Mono-InternVL, has such experts in its feed-forward layers,
(1 - m) f(x) + m g(x), and none in attention: that the whole of it is so is our reading.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import einsum, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, uniform
from attnjax.typing import Array, Float


class Projections(NamedTuple):
    """Of the tokens of one kind, to N query heads, K key and value heads, and back."""

    q: Float[Array, "W N H"]
    k: Float[Array, "W K H"]
    v: Float[Array, "W K H"]
    out: Float[Array, "N H W"]


def _as_they_are(x: Array) -> Array:
    return x


@on_any_mesh
def modality_expert_attention(
    x: Float[Array, "B T W"],
    visual: Float[Array, "B T"],
    text: Projections,
    vision: Projections,
    *,
    code: Callable[[Array], Array] = _as_they_are,
    impl: Impl = None,
) -> Float[Array, "B T W"]:
    """Causal self-attention; `visual` is m, `code` turns q and k, by rotary positions say.

    Both projections of all tokens are computed, and one of them kept.
    """
    m = wide(visual)[..., None]

    def of_kinds(spec: str, y: Array, name: str) -> Array:
        one, other = (einsum(spec, y, getattr(kind, name)) for kind in (text, vision))
        part = m if one.ndim == m.ndim else m[..., None]
        return (1 - part) * one + part * other

    q, k, v = (of_kinds("BTW,WNH->BTNH", x, name) for name in ("q", "k", "v"))
    out = attend(code(q), code(k), v, mask=masks.causal, impl=impl)
    return of_kinds("BTNH,NHW->BTW", out, "out").astype(x.dtype)


def _one_kind(x: Array, text: Projections) -> Array:
    q, k, v = (jnp.einsum("btw,wnh->btnh", x, w) for w in text[:3])
    return jnp.einsum("btnh,nhw->btw", attend(q, k, v, mask=masks.causal), text.out)


OPS = (
    Op(
        modality_expert_attention,
        papers=(363,),
        draw={"visual": uniform(0.0, 1.0)},
        limits=(
            Limit("text alone has its projections", {"visual": fill(0.0)}, _one_kind),
            Limit(
                "vision alone has its projections",
                {"visual": fill(1.0)},
                lambda x, vision: _one_kind(x, vision),
            ),
        ),
    ),
)
