"""Dropout of attention weights, with a fate of each pair that does not depend on tiles.

    out_i = sum_j keep_ij / (1 - rate) A_ij v_j,    keep_ij is 1 with probability 1 - rate, else 0

A are the weights after normalization: what they are divided by is not dropped.  keep_ij is a hash
of the positions of query and key and of a seed, so the dense matrix, tiles, selected blocks and
steps around a ring drop the same pairs, forward and backward, and nothing of T x S is kept.

Paper: Srivastava et al., "Dropout", 2014; of attention weights, Vaswani et al. 2017,
arXiv:1706.03762.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.pairwise.operands import Shape, Tile
from attnjax.typing import Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["rate"])
@dataclass(frozen=True)
class Dropout:
    """What `attend(..., dropout=)` takes.

    rate   the probability with which a weight is dropped, in [0, 1)
    key    one key of jax.random: examples and heads drop pairs of their own; or keys (B|1,N|1):
           those examples and heads that share a key drop the same pairs

    Raises ValueError for a rate outside [0, 1), NaN included.
    """

    rate: float
    key: Array

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"Dropout: rate is {self.rate!r}, expected a number in [0, 1)")

    def laid_out(self, z: Shape) -> "Keep":
        """The same for a call of B examples and N heads; ValueError for keys of other shapes."""
        keys = self.key
        if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
            keys = jax.random.wrap_key_data(keys)
        if keys.ndim == 0:
            return Keep(self.rate, jax.random.bits(keys, (z.B, z.N, 1, 2), jnp.uint32))
        if keys.ndim != 2 or keys.shape[0] not in (1, z.B) or keys.shape[1] not in (1, z.N):
            raise ValueError(
                f"Dropout: key has shape {keys.shape}, expected () or (B|1,N|1) with B = {z.B}, "
                f"N = {z.N}"
            )
        words = jax.vmap(lambda key: jax.random.bits(key, (1, 2), jnp.uint32))(keys.reshape(-1))
        return Keep(self.rate, words.reshape(*keys.shape, 1, 2))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["words"], meta_fields=["rate"])
@dataclass(frozen=True)
class Keep:
    """Dropout laid out for the tiles: two words of a seed for each example and head.

    words (B|1,N|1,1,2) uint32
    """

    rate: float
    words: Array

    def factor(self, tile: Tile, dtype: jnp.dtype) -> Array:
        """What the weights of a tile are multiplied by, (B|1,N|1,t,s): 0 or 1/(1 - rate)."""
        i = tile.q.positions[:, None].astype(jnp.uint32)
        j = tile.k.positions[None, :].astype(jnp.uint32)
        row = _mixed(i + self.words[..., :1])
        more = _mixed(row ^ self.words[..., 1:])
        # A row walks along one sequence from a place of its own, bent by a second word of its own.
        x = row + j * _word(0x9E3779B9)
        x = (x ^ (x >> _word(16))) * _word(0x7FEB352D) ^ more
        x = (x ^ (x >> _word(15))) * _word(0x846CA68B)
        kept = (x ^ (x >> _word(16))) >= _word(round(self.rate * 2**32))
        return jnp.where(kept, jnp.asarray(1 / (1 - self.rate), dtype), jnp.zeros((), dtype))


def drop(keep: Keep | None, weights: Array, tile: Tile) -> Array:
    """The weights of a tile, or their cotangents, after dropout."""
    return weights if keep is None else weights * keep.factor(tile, weights.dtype)


def _word(x: int) -> np.uint32:
    return np.uint32(min(x, 2**32 - 1))


def _mixed(x: Array) -> Array:
    """A bijection of 32-bit words in which every bit of x reaches every bit (lowbias32)."""
    x = (x ^ (x >> _word(16))) * _word(0x7FEB352D)
    x = (x ^ (x >> _word(15))) * _word(0x846CA68B)
    return x ^ (x >> _word(16))
