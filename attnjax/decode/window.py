"""A ring: sinks and the last tokens of a text without end."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.masks import Mask
from attnjax.decode.caches import FIELDS, Cache, empty_fields
from attnjax.typing import Array, Int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=FIELDS,
    meta_fields=["codec", "window", "sinks"],
)
@dataclass(frozen=True)
class Window(Cache):
    """A ring of the last tokens behind `sinks` first ones: memory that no text outgrows.

    A query sees the last `window` tokens, its own among them, and the sinks; no mask shows more.
    """

    window: int
    sinks: int

    kept: ClassVar[str] = "chunks of at most `chunk` tokens"

    @classmethod
    def empty(
        cls, B: int, window: int, K: int, H: int, *, sinks: int = 0, chunk: int = 16, **more: Any
    ) -> "Window":
        """A window and sinks, with room for appending `chunk` tokens at a time; more as in `Dense`.

        Drafts may be rewound by at most `chunk` tokens.
        """
        if window < 1 or sinks < 0 or chunk < 1:
            raise ValueError(
                f"Window: window, sinks, chunk are {window}, {sinks}, {chunk}; expected at least "
                "1, 0 and 1"
            )
        fields = empty_fields(B, sinks + window + chunk - 1, K, H, **more)
        return cls(**fields, window=window, sinks=sinks)

    @property
    def chunk(self) -> int:
        """How many tokens may be appended at a time."""
        return self.slots - self.sinks - self.window + 1

    @property
    def mask(self) -> Mask:
        near = masks.window(self.window - 1)
        return near | masks.sinks(self.sinks) if self.sinks else near

    def _check(self, k: Array, v: Array, extra: tuple[Array, ...]) -> None:
        super()._check(k, v, extra)
        if k.shape[1] > self.chunk:
            raise ValueError(
                f"Window.append: T = {k.shape[1]} tokens, expected at most chunk = {self.chunk}; "
                "longer prompts come in parts"
            )

    def _places(self, at: Int[Array, "B T"]) -> Int[Array, "B T X"]:
        ring = self.slots - self.sinks
        place = jnp.where(at < self.sinks, at, self.sinks + (at - self.sinks) % ring)
        return jnp.broadcast_to(place[..., None], (*at.shape, self.heads))
