"""Sequences in chunks: cut, scanned over, and put together again."""

from typing import Any

import jax
import jax.numpy as jnp

from attnjax.typing import Array


def into_blocks(tree: Any, size: int) -> Any:
    """Each (B,S,...) as (blocks,B,size,...); zeros, which write nothing, fill the last one."""

    def cut(x: Array) -> Array:
        count = -(-x.shape[1] // size)
        if count * size > x.shape[1]:
            x = jnp.pad(x, ((0, 0), (0, count * size - x.shape[1]), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)


def in_a_row(x: Array, length: int) -> Array:
    """(blocks,B,size,...) as (B,length,...): undoes `into_blocks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
