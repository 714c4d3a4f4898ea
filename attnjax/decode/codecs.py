"""How a cache stores keys and values: as they are, or as small integers with scales.

A codec is a value with `encode`, (B,T,K,H) -> a tree of arrays (B,T,K,...), and `decode` back.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from attnjax.core.numerics import divide, wide
from attnjax.typing import Array, Float, Int, Leaf


@runtime_checkable
class Codec(Protocol):
    """What each token is stored as; any hashable value with these two methods."""

    def encode(self, x: Float[Array, "B T K H"]) -> Any:
        """A tree of arrays (B,T,K,...); zeros give zeros."""
        ...

    def decode(self, stored: Any) -> Float[Array, "B T K H"]:
        """What `encode` was given, or near it."""
        ...


@dataclass(frozen=True)
class Plain:
    """Numbers of one dtype."""

    dtype: Any = jnp.float32

    def encode(self, x: Float[Array, "B T K H"]) -> Array:
        return x.astype(self.dtype)

    def decode(self, stored: Array) -> Array:
        return stored


class Scaled(NamedTuple):
    """Integers, those of 4 bits two in a byte, and what groups of channels are multiplied by."""

    values: Leaf  # (B,T,K,H) int8, or (B,T,K,H/2) uint8
    scale: Leaf  # (B,T,K,H/group) float16


@dataclass(frozen=True)
class Integers:
    """x = scale * n with |n| <= 2^(bits-1) - 1, a scale for each `group` of channels of a token.

    The error is at most half a scale, which is the largest |x| of the group over the largest n; and
    what float16 rounds the scale by.  bits is 8 or 4; group divides H, all channels if None.
    """

    bits: int = 8
    group: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"Integers: bits is {self.bits}, expected 8 or 4")
        if self.group is not None and self.group < 1:
            raise ValueError(f"Integers: group is {self.group}, expected at least 1, or None")

    def encode(self, x: Float[Array, "B T K H"]) -> Scaled:
        H = x.shape[-1]
        group = self.group or H
        if H % group or (self.bits == 4 and H % 2):
            even = "an even number and " if self.bits == 4 else ""
            raise ValueError(f"Integers: H = {H}, expected {even}a multiple of group {group}")
        top = 2 ** (self.bits - 1) - 1
        parts = wide(x).reshape(*x.shape[:-1], H // group, group)
        # float16 rounds to nearest: a scale just too small is clipped for, by less than a step
        scale = (jnp.abs(parts).max(-1) / top).astype(jnp.float16)
        n = jnp.round(divide(parts, scale[..., None].astype(parts.dtype)))
        n = jnp.clip(n, -top, top).astype(jnp.int8).reshape(x.shape)
        return Scaled(n if self.bits == 8 else _packed(n), scale)

    def decode(self, stored: Scaled) -> Float[Array, "B T K H"]:
        n = stored.values if self.bits == 8 else _unpacked(stored.values)
        scale = stored.scale.astype(jnp.float32)
        parts = n.reshape(*n.shape[:-1], scale.shape[-1], -1).astype(jnp.float32)
        return (parts * scale[..., None]).reshape(n.shape)


def _packed(n: Int[Array, "*A H"]) -> Array:
    """The first half of the channels in the low four bits, the second in the high ones."""
    low, high = jnp.split(n.astype(jnp.uint8) & 0xF, 2, axis=-1)
    return low | (high << 4)


def _unpacked(x: Array) -> Int[Array, "*A H"]:
    both = jnp.concatenate([x & 0xF, x >> 4], axis=-1).astype(jnp.int8)
    return jnp.where(both > 7, both - 16, both).astype(jnp.int8)


int8 = Integers(8)
int4 = Integers(4, group=32)
