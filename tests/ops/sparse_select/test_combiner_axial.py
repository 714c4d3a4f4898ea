"""Combiner along rows and in both directions: oracles, full support, what serves later rows."""

import functools

import numpy as np
import pytest

from attnjax.ops.sparse_select import combiner_axial, combiner_both
from tests.helpers import draw, near, qkv, run, weights_of
from tests.ops.plain import kv, softmax

B, T, N, K, H = 1, 14, 4, 2, 4


def combiner_axial_oracle(q, k, v, summary_k, width):
    (B, T, N, H), D = q.shape, v.shape[-1]
    out = np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        g = kv(q, k, n)
        row, column = divmod(i, width)
        pairs = [(k[b, j, g], v[b, j, g]) for j in range(row * width, i + 1)]
        for r in range(row):
            here, cells = r * width + column, range(r * width, (r + 1) * width)
            inside = softmax(np.array([q[b, here, n] @ k[b, j, g] / np.sqrt(H) for j in cells]))
            read = sum(p * v[b, j, g] for p, j in zip(inside, cells, strict=True))
            pairs.append((summary_k[b, here, n], read))
        w = softmax(np.array([q[b, i, n] @ key / np.sqrt(H) for key, _ in pairs]))
        out[b, i, n] = sum(x * value for x, (_, value) in zip(w, pairs, strict=True))
    return out


def combiner_both_oracle(q, k, v, block):
    (B, T, N, H), D = q.shape, v.shape[-1]
    out = np.zeros((B, T, N, D))
    blocks = [list(range(s, min(s + block, T))) for s in range(0, T, block)]
    for b, i, n in np.ndindex(B, T, N):
        g = kv(q, k, n)
        pairs = [(k[b, j, g], v[b, j, g]) for j in blocks[i // block]]
        for r in blocks:
            inside = softmax(k[b, r, g] @ q[b, r, n].max(0) / np.sqrt(H))
            pairs.append((k[b, r, g].max(0), inside @ v[b, r, g]))
        w = softmax(np.array([q[b, i, n] @ key / np.sqrt(H) for key, _ in pairs]))
        out[b, i, n] = sum(x * value for x, (_, value) in zip(w, pairs, strict=True))
    return out


def test_every_token_has_a_weight():
    q, k, _ = qkv(B, T, N, H, K=K)
    w = weights_of(functools.partial(run, combiner_both), q, k, block=4)
    near(w.sum(-1), np.ones((B, N, T)))
    assert (w > 0).all()
    axial = lambda q, k, v, keys: combiner_axial(q, k, v, keys, width=4)
    w = weights_of(functools.partial(run, axial), q, k, draw(B, T, N, H, seed=5))
    near(w.sum(-1), np.ones((B, N, T)))
    assert ((w > 0) == np.tri(T, dtype=bool)).all()


def test_inside_an_earlier_row_the_token_above_decides():
    """Queries of one column share the weights of a row before them, up to its mass."""
    q, k, _ = qkv(B, 12, N, H, K=K)
    keys = draw(B, 12, N, H, seed=5)
    axial = lambda q, k, v: combiner_axial(q, k, v, keys, width=4)
    w = weights_of(functools.partial(run, axial), q, k)[..., :4]
    share = w / w.sum(-1, keepdims=True)
    near(share[:, :, 4:8], share[:, :, 8:12])


@pytest.mark.parametrize(("name", "other"), [("width", "q"), ("block", "")])
def test_rows_and_blocks_of_no_tokens(name, other):
    q, k, v = qkv(B, T, N, H, K=K)
    op = combiner_axial if other else combiner_both
    with pytest.raises(ValueError, match=f"{name}: 0; expected at least 1"):
        op(q, k, v, *[q] * len(other), **{name: 0})
