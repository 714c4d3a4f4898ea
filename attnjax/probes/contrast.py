"""What two runs of one model tell of its attention: with and without an image, asked two ways.

    divergence_h = |z_h(image and text) - z_h(text)|           z_h what head h gives
    contrast_j   = a_j(question) / (a_j(any description) + c)

c makes `contrast` the least of sum_j (s_j g_j - a_j)^2 + c s_j^2 g_j, g the second map.

Paper: He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence",
2024, arXiv:2412.13949; Ge et al., "Focusing by Contrastive Attention: Enhancing VLMs' Visual
Reasoning", 2025, arXiv:2509.06461.
Limits: no cropping of an image, no generation: maps and heads come from `edits.captured`.
Differs: of `vision_heads` the median is over all heads of a layer and the deviation that of a
population, our reading: the authors' code was not looked at.

Heads are reinforced by an edit, layer by layer, as what a layer gives changes the next:

    edits.scaled(At("3.heads", tokens=slice(at, None), heads=np.flatnonzero(chosen)), 2.0)
"""

import jax.numpy as jnp

from attnjax.typing import Array, Bool, Float

PAPERS = (4, 8)


def divergence(seeing: Float[Array, "*rest H"], blind: Float[Array, "*rest H"]) -> Array:
    """How far what a head gives is from what it gives without the image: (..., H) -> (...)."""
    return jnp.sqrt(jnp.square(seeing - blind).sum(-1))


def vision_heads(divergences: Float[Array, "*rest N"]) -> Bool[Array, "*rest N"]:
    """Heads above their layer's median, but for those above its mean by a standard deviation."""
    mean = divergences.mean(-1, keepdims=True)
    surge = divergences > mean + divergences.std(-1, keepdims=True)
    return (divergences > jnp.median(divergences, axis=-1, keepdims=True)) & ~surge


def contrast(asked: Float[Array, "*rest P"], general: Float[Array, "*rest P"], c: float = 1e-8):
    """a / (g + c): attention to places of an image that the question draws there."""
    return asked / (general + c)


def contrast_of_steps(
    asked: Float[Array, "U L P"], general: Float[Array, "V L P"], c: float = 1e-8
) -> Float[Array, " P"]:
    """Contrasts summed over layers, and over steps t = 1, 2, .. of both runs with weight t.

    Maps are means over heads; the paper takes layers 20 to 25 of 32.
    """
    steps = min(len(asked), len(general))
    each = contrast(asked[:steps], general[:steps], c).sum(1)
    return jnp.einsum("u,up->p", jnp.arange(1, steps + 1, dtype=each.dtype), each)
