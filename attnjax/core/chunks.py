"""Sequences in chunks: cut, scanned over, and put together again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.typing import Array


def scan_chunks(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, tokens: Any, size: int
) -> tuple[Any, Any]:
    """The last state, and what step(state, chunk) -> (state, results) gives for chunks in turn.

    tokens   a tree of arrays (B,T,...); a chunk is the same tree of (B,size,...), the last filled
             up with zeros, which must leave the state as it is
    results  a tree of (B,size,...), or None; put together they are (B,T,...)
    """
    length = jax.tree.leaves(tokens)[0].shape[1]
    state, results = lax.scan(step, state, jax.tree.map(lambda x: by_chunk(x, size), tokens))
    return state, jax.tree.map(lambda x: in_a_row(x, length), results)


def cut(x: Array, size: int) -> Array:
    """(B,T,...) as (B,chunks,size,...); zeros fill the last one."""
    chunks = -(-x.shape[1] // size)
    x = jnp.pad(x, [(0, 0), (0, chunks * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], chunks, size, *x.shape[2:])


def by_chunk(x: Array, size: int) -> Array:
    """(B,T,...) as (chunks,B,size,...): what a scan goes along."""
    return jnp.moveaxis(cut(x, size), 1, 0)


def in_a_row(x: Array, length: int) -> Array:
    """(chunks,B,size,...) as (B,length,...): undoes `by_chunk`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, :length]
