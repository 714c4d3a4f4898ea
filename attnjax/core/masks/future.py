"""Ops that choose by all tokens what a token sees, and the masks that they must refuse."""

import jax
import numpy as np

from attnjax.core.masks.base import EMPTY, Everything, Mask


def refuse_causal(mask: Mask, T: int, S: int, instead: str) -> None:
    """Raises ValueError for a causal mask, and tells of the op to use in its stead."""
    if hides_future(mask, T, S):
        raise ValueError(
            f"mask: {mask} hides later keys, but what is seen is chosen by all tokens, the later "
            f"ones too; expected a mask of both directions, or {instead}"
        )


def hides_future(mask: Mask, T: int, S: int) -> bool:
    """Whether all keys j > i are known to be hidden from all queries i, of T queries and S keys.

    Known on the host: False for a traced mask, and for one that does not tell its empty rectangles
    (`masks.fn`).  A mask that hides keys from all queries is not causal: padding alone, False.
    """
    if isinstance(mask, Everything) or _traced(mask) or S == 1:
        return False
    mask = mask.resolve(T, S)
    later_keys = mask.classify(*_column([0, T - 1, 1, S - 1]))
    ahead = mask.classify(*_column(_above_diagonal(T, S)))
    return bool((later_keys != EMPTY).any() and (ahead == EMPTY).all())


def _traced(mask: Mask) -> bool:
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(mask))


def _column(ends: np.ndarray | list[int]) -> np.ndarray:
    """(4,...) ends of rectangles, each of the four (n,1): one rectangle a row."""
    return np.asarray(ends, np.int32).reshape(4, -1, 1)


def _above_diagonal(T: int, S: int) -> np.ndarray:
    """Ends (q_lo, q_hi, k_lo, k_hi), (4,n), of rectangles that tile {(i, j): i < j}, n < max(T,S).

    Of each two blocks of 1, 2, 4, ... places the first one's queries and the second one's keys.
    """
    length = max(T, S)
    levels = []
    size = 1
    while size < length:
        first = np.arange(0, length - size, 2 * size)
        levels.append([first, first + size - 1, first + size, first + 2 * size - 1])
        size *= 2
    q_lo, q_hi, k_lo, k_hi = np.concatenate(levels, axis=1)
    inside = (q_lo < T) & (k_lo < S)
    return np.stack([q_lo, np.minimum(q_hi, T - 1), k_lo, np.minimum(k_hi, S - 1)])[:, inside]
