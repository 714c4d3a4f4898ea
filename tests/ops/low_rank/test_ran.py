"""Recurrent attention network: oracles, lengths of windows, what one window knows of another."""

import jax
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.low_rank import memory_review, recurrent_attention
from attnjax.ops.low_rank.ran import OPS, window_lengths
from tests.helpers import near, run
from tests.ops.plain import sigmoid, softmax


def swish(x):
    return x * sigmoid(x)


def norm(x, w):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-7) * w.scale + w.shift


def affine(x, w):
    return x @ w.w + w.b


def gated(x, w):
    return affine(x, w.value) * sigmoid(affine(x, w.gate))


def standard(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-7)


def turned(x, place):
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * place * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def of_window(cell, x, w, heads):
    y = norm(np.stack([cell, *x]), w.join_norm)
    q, k, v = (np.split(swish(affine(y, f)), heads, axis=-1) for f in (w.q, w.k, w.v))
    read = []
    for n in range(heads):
        queries, keys = ([turned(row, i) for i, row in enumerate(z[n])] for z in (q, k))
        scores = np.array(queries) @ np.array(keys).T / np.sqrt(q[n].shape[-1])
        read.append(np.array([softmax(row) for row in scores]) @ v[n])
    z = standard(
        norm(swish(affine(np.concatenate(read, -1), w.out)) + gated(y, w.gate), w.out_norm)
    )
    return z[0], z[1:]


def recurrent_attention_oracle(x, weights, heads, window, least):
    out = []
    for tokens in x:
        ends = [*range(window, len(tokens), window), len(tokens)]
        if len(ends) > 1 and ends[-1] - ends[-2] < least:
            del ends[-2]
        cell, before, start, h = weights.start, None, 0, []
        for end in ends:
            g, part = of_window(cell, tokens[start:end], weights, heads)
            h.append(part)
            cell = (
                g
                if before is None
                else norm(g + gated(before, weights.cell_gate), weights.cell_norm)
            )
            before, start = g, end
        out.append(np.concatenate(h))
    return np.array(out)


def memory_review_oracle(h, cells, weights):
    w, out = weights, np.zeros(h.shape)
    for b in range(len(h)):
        q = swish(affine(h[b], w.q))
        k, v = swish(affine(cells[b], w.k)), swish(affine(cells[b], w.v))
        read = np.array([softmax(k @ row / np.sqrt(len(row))) @ v for row in q])
        out[b] = norm(swish(affine(read, w.out)) + gated(q, w.gate), w.norm)
    return out


@pytest.mark.parametrize(
    ("T", "lengths"),
    [(3, [3]), (4, [4]), (5, [5]), (6, [4, 2]), (8, [4, 4]), (9, [4, 5]), (14, [4, 4, 4, 2])],
)
def test_a_short_last_window_is_part_of_the_one_before(T, lengths):
    assert window_lengths(T, 4, 2) == lengths


def test_a_window_knows_earlier_ones_through_its_cell_alone():
    args = OPS[0].sample(seed=3, T=10)
    x, weights = args["x"], args["weights"]
    options = {"heads": 2, "window": 4, "least": 1, "return_cells": True}
    h, cells, last = run(recurrent_attention, x, weights, **options)
    alone = weights._replace(start=cells[0, 0])
    near(run(recurrent_attention, x[:1, 4:8], alone, heads=2, window=4, least=1)[0], h[0, 4:8])
    assert cells.shape == (2, 3, 8) and last.shape == (2, 8) and h.shape == x.shape
    causal = dict(options, inside=masks.causal)
    later = run(recurrent_attention, x.at[:, 6].add(1.0), weights, **causal)[0]
    near(later[:, :6], run(recurrent_attention, x, weights, **causal)[0][:, :6])


def test_a_review_lets_every_token_see_every_cell():
    args = OPS[1].sample(seed=4)
    out = lambda cells: memory_review(args["h"], cells, args["weights"])
    slopes = run(jax.jacobian(lambda cells: out(cells).sum(-1)), args["cells"])
    assert (np.abs(slopes[0, :, 0]).max(-1) > 0).all()


def test_sizes_that_do_not_fit():
    args = OPS[0].sample() | {"window": 3, "least": 4}
    with pytest.raises(ValueError, match="window, least: 3, 4; expected 1 at least"):
        recurrent_attention(**args)
