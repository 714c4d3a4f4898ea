"""Pervasive attention: oracles; what a target token sees, padding, alignments."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.attention_free import pervasive_alignment, pervasive_attention
from tests.helpers import draw, exact, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import sigmoid


def _upwards(h, kernel):
    """(T,S,E): what each cell gets of the cells above it and beside them; kernel (rows,k,E,...)."""
    (T, S), (rows, k) = h.shape[:2], kernel.shape[:2]
    out = np.zeros((T, S, *kernel.shape[3:])) if kernel.ndim == 4 else np.zeros_like(h)
    for t, s, r, c in np.ndindex(T, S, rows, k):
        i, j = t - (rows - 1) + r, s - k // 2 + c
        if i >= 0 and 0 <= j < S:
            out[t, s] += h[i, j] @ kernel[r, c] if kernel.ndim == 4 else h[i, j] * kernel[r, c]
    return out


def _cells(x, source, blocks, ends):
    apply = lambda h, affine: h @ affine.w + affine.b
    for b in range(len(x)):
        pairs = [[np.concatenate([s, t]) for s in source[b]] for t in x[b]]
        h = apply(np.array(pairs), ends.into)
        every = [h]
        for w in blocks:
            u = (h + _upwards(apply(h, w.reduce), w.kernel)) / np.sqrt(2)
            h = (u + apply(np.maximum(apply(u, w.up), 0), w.down)) / np.sqrt(2)
            every.append(h)
        a, gate = np.split(apply(sum(every) / len(every), ends.gated), 2, axis=-1)
        yield a * sigmoid(gate)


def pervasive_attention_oracle(x, source, blocks, ends):
    return np.array([cells.max(1) for cells in _cells(x, source, blocks, ends)])


def pervasive_alignment_oracle(x, source, blocks, ends):
    out = np.zeros((len(x), x.shape[1], source.shape[1]))
    for b, cells in enumerate(_cells(x, source, blocks, ends)):
        for t, channel in np.ndindex(cells.shape[0], cells.shape[2]):
            out[b, t, cells[t, :, channel].argmax()] += 1 / cells.shape[2]
    return out


def pervasive_dense_layer_oracle(x, weights):
    w, new = weights, []
    for b in range(len(x)):
        h = np.maximum(x[b] * w.norm.scale + w.norm.shift, 0) @ w.reduce
        h = np.maximum(h * w.inner_norm.scale + w.inner_norm.shift, 0)
        new.append(_upwards(h, w.kernel))
    return np.concatenate([x, np.array(new)], axis=-1)


def _drawn():
    args = BY_NAME["pervasive_attention"].sample()
    return args["x"], args["source"], args["blocks"], args["ends"]


attention, alignment = jax.jit(pervasive_attention), jax.jit(pervasive_alignment)


def test_padding_of_the_source_changes_nothing():
    x, source, blocks, ends = _drawn()
    seen = jnp.asarray(np.arange(5) < [[3], [5]])
    spoiled = jnp.where(seen[..., None], source, jnp.nan)
    near(
        attention(x, spoiled, blocks, ends, seen=seen)[:1],
        attention(x, source[:, :3], blocks, ends)[:1],
    )
    share = alignment(x, spoiled, blocks, ends, seen=seen)
    near(share[:1, :, :3], alignment(x, source[:, :3], blocks, ends)[:1])
    assert not share[:1, :, 3:].any()
    assert not attention(x, source, blocks, ends, seen=jnp.zeros((2, 5), bool)).any()


def test_alignments_are_shares_of_the_channels():
    drawn = _drawn()
    share = alignment(*drawn)
    near(share, pervasive_alignment_oracle(*exact(drawn)))
    near(share.sum(-1), np.ones(share.shape[:2]))


def test_a_target_token_reaches_as_many_rows_as_kernels_have():
    x, source, blocks, ends = _drawn()
    other = attention(x.at[:, 2].add(draw(8, seed=1)), source, blocks, ends)
    changed = np.abs(other - attention(x, source, blocks, ends)).max((0, 2)) > 0
    assert np.flatnonzero(changed).tolist() == [2, 3, 4]  # two blocks, one row up each


def test_kernels_of_zeros_know_no_order_of_the_source():
    x, source, blocks, ends = _drawn()
    still = [w._replace(kernel=0 * w.kernel) for w in blocks]
    near(attention(x, source[:, ::-1], still, ends), attention(x, source, still, ends))
    moved = attention(x, source[:, ::-1], blocks, ends) - attention(x, source, blocks, ends)
    assert np.abs(moved).max() > 1e-3
