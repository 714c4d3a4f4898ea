"""Attention in windows of a grid with learned biases, every second layer shifted: Swin's blocks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax.ops.local_structured.grids import PerAxis, per_axis, window_attention


class Windows(nnx.Module):
    """`window_attention` with a table of relative places for each head, which begins at nothing.

    It is called as any attention, (q, k, v), on cells in row-major order.
    """

    def __init__(self, shape: Sequence[int], window: PerAxis, heads: int, *, shift: PerAxis = 0):
        self.shape, self.window, self.shift = tuple(shape), window, shift
        sizes = per_axis("window", window, len(self.shape))
        self.table = nnx.Param(jnp.zeros((heads, *(2 * n - 1 for n in sizes))))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        cut = {"shape": self.shape, "window": self.window, "shift": self.shift}
        return window_attention(q, k, v, **cut, table=self.table[...])


def swin(shape: Sequence[int], window: PerAxis, heads: int, depth: int) -> list[Windows]:
    """One for each of `depth` layers, such as a `lab.TinyViT`'s; every second one is shifted.

    The shift is half a window, on each axis with more than one window.
    """
    sizes = per_axis("window", window, len(shape))
    half = tuple(n // 2 if n < extent else 0 for n, extent in zip(sizes, shape, strict=True))
    shifts = [half if i % 2 else 0 for i in range(depth)]
    return [Windows(shape, sizes, heads, shift=shift) for shift in shifts]
