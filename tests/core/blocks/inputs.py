"""Inputs of tests of selections: few tokens, whose last blocks are not whole."""

from dataclasses import replace

import numpy as np

from attnjax import (
    select,
)
from tests import helpers
from tests.helpers import draw

B, T, S, N, K, H, D = 2, 13, 11, 4, 2, 8, 6


def qkv(seed=0):
    return helpers.qkv(B, T, N, H, S=S, K=K, D=D, seed=seed)


def some_blocks(X, block_q, block_k, count, seed=7):
    """`count` random blocks for each query block, one of them invalid for the first query block."""
    U, n = -(-T // block_q), -(-S // block_k)
    chosen = select.top_k(draw(B, U, X, n, seed=seed), count, block_q=block_q, block_k=block_k)
    return replace(chosen, valid=chosen.valid.at[:, 0, :, 0].set(False))


def as_array(selection):
    """The same choice as booleans (B,N,T,S), by loops."""
    seen = np.zeros((B, N, T, S), bool)
    indices, valid = np.asarray(selection.indices), np.asarray(selection.valid)
    X = indices.shape[2]
    for b, n, i, j in np.ndindex(B, N, T, S):
        row = (b, i // selection.block_q, n * X // N)
        seen[b, n, i, j] = any(valid[row] & (indices[row] == j // selection.block_k))
    return seen
