"""What single heads attend to: patterns of tokens, words, distances, and heads that are alike.

    score = sum_ij w_ij p_ij / sum_ij w_ij            of a head and a pattern p of zeros and ones
    JS(a, b) = (KL(a || m) + KL(b || m)) / 2,         m = (a + b) / 2

`previous`, `duplicate` and `induction` are the patterns of TransformerLens' head detector.

Paper: Clark et al., "What Does BERT Look At? An Analysis of BERT's Attention", 2019,
arXiv:1906.04341 (`head_distances`, `word_maps`, `best_offset`); Li et al., "How Does Attention Work
in Vision Transformers? A Visual Analytics Attempt", 2023, arXiv:2303.13731 (`hops`).
Limits: maps are held whole.
Differs: of the second paper the abstract alone was read: `hops` is our reading.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.typing import Array, Bool, Float, Int

PAPERS = (44, 187)


def previous(tokens: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Each token to the one before."""
    B, T = tokens.shape
    return jnp.broadcast_to(jnp.eye(T, k=-1, dtype=bool), (B, 1, T, T))


def duplicate(tokens: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Each token to earlier ones of the same kind."""
    same = tokens[:, None, :, None] == tokens[:, None, None, :]
    return jnp.tril(same, -1)


def induction(tokens: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Each token to those behind earlier ones of the same kind; itself is one if it repeats."""
    return jnp.roll(duplicate(tokens), 1, axis=-1).at[..., 0].set(False)


def pattern_score(
    maps: Float[Array, "*rest T S"], pattern: Bool[Array, "..."]
) -> Float[Array, "*rest"]:
    """The share of a head's weights that lies on a pattern, which broadcasts to the maps."""
    return jnp.where(pattern, maps, 0).sum((-2, -1)) / maps.sum((-2, -1))


def head_distances(maps: Float[Array, "N T S"], smoothing: float = 1e-3) -> Float[Array, "N N"]:
    """The sum over queries of the Jensen-Shannon divergence, in nats, of all pairs of heads.

    Weights are smoothed first, (1 - e) w + e / S.  To draw heads near that are alike:
    sklearn.manifold.MDS(dissimilarity="precomputed").
    """
    p = (1 - smoothing) * maps + smoothing / maps.shape[-1]

    def to_all(head: Array) -> Array:
        m = (head + p) / 2
        terms = head * jnp.log(head / m) + p * jnp.log(p / m)
        return terms.sum((-2, -1)) / 2

    return jnp.stack([to_all(head) for head in p])


def word_maps(
    maps: Float[Array, "*rest T T"], words: Int[np.ndarray, " T"]
) -> Float[Array, "*rest W W"]:
    """Maps of words from those of their pieces: what goes to a word is summed, from it averaged.

    words  the number of each token's word, 0 .. W-1, each of them there
    """
    number = int(np.max(words)) + 1
    of = jnp.asarray(np.asarray(words)[:, None] == np.arange(number), maps.dtype)
    return jnp.einsum("tw,...ts,su->...wu", of / of.sum(0), maps, of)


def head_accuracy(
    maps: Float[Array, "*rest T T"], heads: Int[Array, " T"], there: Bool[Array, " T"]
) -> Float[Array, "*rest"]:
    """How often the largest weight of a token is at its head in a tree, of the tokens there."""
    hit = maps.argmax(-1) == heads
    return jnp.where(there, hit, False).sum(-1) / there.sum()


def best_offset(heads: Int[np.ndarray, " T"], there: Bool[np.ndarray, " T"]) -> tuple[int, float]:
    """The fixed offset that finds most heads, and how many: what a head must beat."""
    steps = (np.asarray(heads) - np.arange(len(heads)))[np.asarray(there)]
    found, counts = np.unique(steps, return_counts=True)
    best = int(counts.argmax())
    return int(found[best]), float(counts[best] / len(steps))


def hops(maps: Float[Array, "*rest T T"], grid: tuple[int, int]) -> Float[Array, "*rest R"]:
    """The mean weight that patches give to those 0, 1, .. steps of a king away.

    maps of the patches alone, rows of the grid one behind the other; sums to the mean of the rows'
    sums.
    """
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    far = np.maximum(abs(y[:, None] - y), abs(x[:, None] - x))
    rings = jnp.asarray(far == np.arange(max(grid))[:, None, None], maps.dtype)
    return jnp.einsum("...ts,rts->...r", maps, rings) / maps.shape[-2]
