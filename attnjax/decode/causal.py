"""Causal attention as a value: over a whole text when called, over a cache step by step."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from attnjax.core import masks, normalizers
from attnjax.core.masks import Mask
from attnjax.core.mods import Mod
from attnjax.core.normalizers import Normalizer
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.decode.attend import Terms, Turn, attend_cache
from attnjax.typing import Array, Out, Q, TokenK, TokenV

Policy = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Causal:
    """What `nn.Attention` or `lab.TinyLM` takes for `attend`, and generates with.

        op = Causal(mods=(mods.alibi(slopes),), mask=masks.window(255))
        out = op(q, k, v)                        # the parallel form, for training
        out, cache = op.step(q, k, v, cache)     # the same rows, from a cache

    mask joins `causal`; the other terms are those of `attend_cache`.  Arrays of mods are constants
    here: what is trained belongs to a module.
    """

    mods: tuple[Mod, ...] = ()
    mask: Mask = masks.everything
    normalizer: Normalizer = normalizers.softmax
    scale: float | Array | None = None
    turn: Turn | None = None
    impl: Impl = None

    @property
    def terms(self) -> Terms:
        """As `attend_cache`, `masses` and policies take them."""
        return {
            "mods": self.mods,
            "mask": masks.causal & self.mask,
            "normalizer": self.normalizer,
            "scale": self.scale,
            "turn": self.turn,
            "impl": self.impl,
        }

    def __call__(self, q: Q, k: TokenK, v: TokenV) -> Out:
        """Attention of a whole text, T = S."""
        terms: dict[str, Any] = dict(self.terms)
        if (turn := terms.pop("turn")) is not None:
            at = jnp.arange(q.shape[1])
            q, k = (turn(x, at).astype(x.dtype) for x in (q, k))
        return attend(q, k, v, **terms)

    def step(
        self, q: Q, k: TokenK, v: TokenV, cache: Any, policy: Policy | None = None
    ) -> tuple[Out, Any]:
        """The next T tokens: (out, the cache with them), within the policy's budget."""
        cache = cache.append(k, v)
        out = attend_cache(q, cache, **self.terms)
        return out, cache if policy is None else policy(q, cache, **self.terms)


def stepped(op: Any) -> Any:
    """The op with a method `step` that stands for `op(q, k, v)`; None if none is known.

    An op that has one, or a `functools.partial` of `attend` with a causal mask.
    """
    if hasattr(op, "step"):
        return op
    names = {"mods", "mask", "normalizer", "scale", "impl"}
    if not isinstance(op, functools.partial) or op.func is not attend or op.args:
        return None
    return Causal(**op.keywords) if op.keywords.keys() <= names else None
