"""How attention flows through layers: products of their maps, and what readers do to maps before.

    rollout   F_l = ((1 - r) A_l + r I) F_{l-1},     F_0 = I
    flow      F_l = (I + S_l) (I + F_{l-1}),         F_0 = 0

Row i of a product says from which tokens of the input token i draws after all layers.

Paper: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020, arXiv:2005.00928
(rollout, r = 1/2); Wu et al., "On the Emergence of Position Bias in Transformers", 2025,
arXiv:2502.01951 (r = 0: under a causal mask the weight of the first token grows with each layer);
Lin et al., "Training-Free Open-Ended Object Detection and Segmentation via Attention as Prompts",
2024, arXiv:2410.05963 (flow, of heads weighed by `sharp_heads` and damped by `damped_early`).
Limits: maps are held whole; one example or several, (layers, ..., T, T).
Differs: F_0 of `flow` is our reading.
"""

import jax
import jax.numpy as jnp

from attnjax.typing import Array, Bool, Float

PAPERS = (303, 390)

Maps = Float[Array, "L *rest T S"]


def rollout(maps: Float[Array, "L *rest T T"], residual: float = 0.5) -> Float[Array, "*rest T T"]:
    """The product of the layers' maps, the last on the left, with that share of residual.

    Rows sum to one if those of the maps do.
    """
    eye = jnp.eye(maps.shape[-1], dtype=maps.dtype)

    def layer(below: Array, map_: Array) -> tuple[Array, None]:
        return ((1 - residual) * map_ + residual * eye) @ below, None

    start = jnp.broadcast_to(eye, maps.shape[1:])
    return jax.lax.scan(layer, start, maps)[0]


def flow(maps: Float[Array, "L *rest T T"]) -> Float[Array, "*rest T T"]:
    """The product with a residual on both factors; rows are not normalized."""
    eye = jnp.eye(maps.shape[-1], dtype=maps.dtype)

    def layer(below: Array, map_: Array) -> tuple[Array, None]:
        return (eye + map_) @ (eye + below), None

    return jax.lax.scan(layer, jnp.zeros(maps.shape[1:], maps.dtype), maps)[0]


def sharp_heads(maps: Float[Array, "*rest N T S"]) -> Float[Array, "*rest T S"]:
    """S = mean over heads of the head's map times the mean over queries of its largest weight."""
    weight = maps.max(-1).mean(-1)
    return jnp.mean(weight[..., None, None] * maps, axis=-3)


def damped_early(
    maps: Float[Array, "*rest T S"], allowed: Bool[Array, "T S"] | None = None
) -> Float[Array, "*rest T S"]:
    """Each column times 1 - (rows that see it - 1) / T: under a causal mask (j + 1) / T.

    What all see, the first tokens, would else gather the flow of every layer.  `allowed` is causal
    if it is not given.
    """
    T, S = maps.shape[-2:]
    allowed = jnp.tril(jnp.ones((T, S), bool)) if allowed is None else allowed
    return maps * (1 - (allowed.sum(0) - 1) / T).astype(maps.dtype)


def spread(row: Float[Array, "*rest S"]) -> Float[Array, "*rest S"]:
    """The row from 0, its least, to 1, its largest; a constant one is 0."""
    low, high = row.min(-1, keepdims=True), row.max(-1, keepdims=True)
    return (row - low) / jnp.where(high > low, high - low, 1)
