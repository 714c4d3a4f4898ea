"""What is left of scores when all that belongs to a query or a key alone is taken away.

    c_ij = s_ij - mean_j s_ij - mean_i s_ij + mean_ij s_ij,    s = log of unnormalized weights
    interaction of rank r:  the first r terms of the singular value decomposition of c

A number for each query added to s changes no softmax, one for each key is a bias: c sees neither.
Of s = q . k / sqrt(H), c is that of the centered queries and keys, of rank H at most.

"Geometric Attention: A Regime-Explicit Operator Semantics for Transformer Attention", 2026,
arXiv:2601.11618, of which the abstract alone was read.
"""

import jax.numpy as jnp

from attnjax.typing import Array, Float, K, Q

PAPERS = (382,)

Scores = Float[Array, "*rest T S"]


def double_centered(scores: Scores) -> Scores:
    """c: rows and columns have mean zero.  Scores are finite: of a map without a mask."""
    rows = scores - scores.mean(-1, keepdims=True)
    return rows - rows.mean(-2, keepdims=True)


def centered(q: Q, k: K) -> tuple[Q, K]:
    """Queries and keys whose scores are double centered, without a (T,S) array."""
    return q - q.mean(1, keepdims=True), k - k.mean(1, keepdims=True)


def interaction(scores: Scores, rank: int) -> tuple[Scores, Float[Array, "*rest R"]]:
    """The matrix of that rank that is nearest to c, and all singular values of c, falling.

    The square distance to c is the sum of the squares of the singular values behind the first.
    """
    if rank < 0:
        raise ValueError(f"rank: {rank}; expected at least 0")
    u, s, v = jnp.linalg.svd(double_centered(scores), full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :], s
