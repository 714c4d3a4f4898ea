"""A penalty on attention to keys that are not to be seen looked at.

    penalty_i = -log(1 - sum_{j forbidden} w_ij),    0 where no key is forbidden

Added to a loss it trains models whose weights hide what they use.  Over heads its mean or its
maximum, the worst head, is taken; the paper multiplies it by 0.1 or 1.

Paper: Pruthi et al., "Learning to Deceive with Attention-Based Explanations", 2019,
arXiv:1909.07913.
Limits: softmax attention.
Differs: for translation the paper takes the logarithm of the mean over target steps, not the mean
of logarithms: -log(mean(exp(-penalty))).
"""

import jax.numpy as jnp

from attnjax.core import normalizers
from attnjax.core.masks import Mask, everything
from attnjax.core.mods import Mod
from attnjax.core.pairwise.attend import attend_state
from attnjax.typing import Array, Bool, Float, K, PerQuery, Q

PAPERS = (100,)


def mass_penalty(maps: Float[Array, "*rest S"], forbidden: Bool[Array, "..."]) -> Array:
    """The penalty of weights that sum to one: (..., S) -> (...)."""
    kept = jnp.where(forbidden, 0, maps).sum(-1)
    return jnp.where(jnp.any(forbidden, axis=-1), -jnp.log(kept), 0)


def forbidden_penalty(
    q: Q,
    k: K,
    forbidden: Mask,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask = everything,
    scale: float | None = None,
) -> PerQuery:
    """The same of queries and keys, in O(T + S) memory; `mask`, `mods` as of `attend`.

    Infinite where every key is forbidden, or the mask leaves only such.
    """
    v = jnp.zeros((*k.shape[:3], 1), k.dtype)
    logs = [
        normalizers.log_sum(attend_state(q, k, v, mods=mods, mask=each, scale=scale))
        for each in (mask, mask & ~forbidden)
    ]
    whole, kept = logs
    lowest = normalizers.lowest(whole.dtype)
    value = jnp.where(kept <= lowest, jnp.inf, jnp.maximum(whole - kept, 0))
    return jnp.swapaxes(jnp.where(whole <= lowest, 0.0, value)[..., 0], 1, 2)
