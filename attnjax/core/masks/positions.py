"""Masks of positions alone: causal, window, sinks, prefix, dilated."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import register_dataclass

from attnjax.core.closures import by_value, name_of, traced_closure
from attnjax.core.masks.arrays import Lengths
from attnjax.core.masks.base import (
    FAR,
    PARTIAL,
    Mask,
    checked_int,
    checked_ints,
    constant,
    numpy_of,
    static_field,
    verdict,
)

# ---------------------------------------------------------------- masks of positions alone


@register_dataclass
@dataclass(frozen=True, repr=False)
class Window(Mask):
    """q - left <= k <= q + right; None is no limit on that side, `right` may be negative."""

    left: int | None = static_field()
    right: int | None = static_field()

    def allowed(self, q_pos, k_pos):
        return self._within(q_pos - k_pos, q_pos - k_pos)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        near, far = q_lo - k_hi, q_hi - k_lo  # q - k takes every value from near to far
        return verdict(self._within(far, near), self._within(near, far))

    def _within(self, back, ahead):
        left = FAR if self.left is None else self.left
        right = FAR if self.right is None else self.right
        return (ahead <= left) & (back >= -right)

    def __repr__(self):
        return "causal" if (self.left, self.right) == (None, 0) else super().__repr__()


@register_dataclass
@dataclass(frozen=True, repr=False)
class CausalToEnd(Mask):
    """k <= q + S - T; has to be resolved to a window before it can answer."""

    def resolve(self, T, S):
        return Window(None, S - T)

    def at_positions(self, T, S, q_positions, k_positions):
        """Positions of queries tell where they stand: nothing is left to shift."""
        if q_positions is not None:
            return causal
        if isinstance(k_positions, Tracer):
            raise ValueError(
                "causal_to_end: k_positions are traced and q_positions None, so that the end is "
                "not known; expected q_positions, with which masks.causal does"
            )
        return Window(None, int(np.max(k_positions)) - (T - 1))

    def allowed(self, q_pos, k_pos):
        raise ValueError("causal_to_end: T and S are not known here, call resolve(T, S) first")

    def __repr__(self):
        return "causal_to_end"


@register_dataclass
@dataclass(frozen=True, repr=False)
class Prefix(Mask):
    """k < n."""

    n: int = static_field()

    def allowed(self, q_pos, k_pos):
        return k_pos < self.n

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return verdict(k_lo < self.n, k_hi < self.n)


@functools.partial(register_dataclass, data_fields=[], meta_fields=["n"])
class Sinks(Prefix):
    """k < n, under the name it has beside a window."""


@register_dataclass
@dataclass(frozen=True, repr=False)
class Dilated(Mask):
    """|q - k| <= window * dilation and q - k is a multiple of dilation."""

    window: int = static_field()
    dilation: int = static_field()

    def allowed(self, q_pos, k_pos):
        d = q_pos - k_pos
        return (abs(d) <= self.window * self.dilation) & (d % self.dilation == 0)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        near, far, g, reach = q_lo - k_hi, q_hi - k_lo, self.dilation, self.window * self.dilation
        xp = numpy_of(near, far)
        last = xp.minimum(far, reach) // g * g  # the largest multiple within reach
        some = last >= xp.maximum(near, -reach)
        every = (near >= -reach) & (far <= reach)
        return verdict(some, every if g == 1 else some & every & (near == far))


@register_dataclass
@dataclass(frozen=True, repr=False)
class Predicate(Mask):
    """Whatever a plain elementwise function of positions says; see `fn`."""

    fn: Callable[[Any, Any], Any] = static_field()

    def resolve(self, T, S):
        return Predicate(by_value(self.fn))  # what it reads may have changed since

    def allowed(self, q_pos, k_pos):
        ok = self.fn(q_pos, k_pos)
        if jnp.result_type(ok) != jnp.bool_:
            raise TypeError(
                f"masks.fn: {name_of(self.fn)} gives {jnp.result_type(ok)}, expected booleans"
            )
        shape = np.broadcast_shapes(np.shape(q_pos), np.shape(k_pos))
        return numpy_of(ok).broadcast_to(ok, shape)

    def classify(self, q_lo, q_hi, k_lo, k_hi):
        return constant(PARTIAL, np.int8, q_lo, k_lo)

    def __repr__(self):
        return f"fn({name_of(self.fn)})"


# ---------------------------------------------------------------- the public values and makers

causal = Window(None, 0)
"""k <= q: rows and columns start together (top-left)."""

causal_to_end = CausalToEnd()
"""k <= q + S - T: the last query sees the last key (bottom-right).

Where `attend` is given q_positions they say where the queries stand, and this is `causal`.
"""


def fn(predicate: Callable[[Any, Any], Any]) -> Mask:
    """The pairs for which predicate(q_pos, k_pos) is true.

        masks.fn(lambda q_pos, k_pos: (q_pos - k_pos) % 3 == 0) & masks.window(64)

    The predicate is elementwise: it sees integers that broadcast against each other and gives
    booleans.  Nothing is known of rectangles, so every tile is computed: combine it with a mask
    that skips tiles.  What it reads besides positions is looked up at each call of `attend`, as
    for `mods`.  Raises TypeError for what is no function and ValueError for one that carries a
    traced array, which could not be cut into tiles: such a mask is `masks.array`, or a selection
    of blocks.
    """
    if not callable(predicate) or isinstance(predicate, Mask):
        raise TypeError(f"masks.fn: got {predicate!r}, expected a function of (q_pos, k_pos)")
    if (held := traced_closure(predicate)) is not None:
        raise ValueError(
            f"masks.fn: {name_of(predicate)} closes over a traced array {held.aval.str_short()}, "
            "expected a function of positions alone; a mask with arrays is masks.array"
        )
    return Predicate(predicate)


def window(left: int | None, right: int | None = 0) -> Mask:
    """q - left <= k <= q + right; None is no limit, so `window(0, None)` looks only ahead.

    The sliding window of Longformer and Mistral; global tokens are `sinks(n)` beside it.
    """
    check = lambda name, n: n if n is None else checked_int(f"window: {name}", n, 0, " or None")
    return Window(check("left", left), check("right", right))


def sinks(n: int) -> Mask:
    """k < n: the first n keys are seen by every query."""
    return Sinks(checked_int("sinks: n", n, 0))


def prefix(n: Any) -> Mask:
    """k < n, for an int or (B,) ints, one per example; a prefix-LM is `causal | prefix(n)`."""
    if isinstance(n, int | np.integer):
        return Prefix(checked_int("prefix: n", n, 0))
    return Lengths(None, checked_ints("prefix: n", n, {1: "an int or (B,)"}))


def dilated(window: int, dilation: int) -> Mask:
    """|q - k| <= window * dilation and q - k is a multiple of dilation (2 window + 1 keys)."""
    window = checked_int("dilated: window", window, 0)
    dilation = checked_int("dilated: dilation", dilation, 1)
    checked_int("dilated: window * dilation", window * dilation, 0)
    return Dilated(window, dilation)
