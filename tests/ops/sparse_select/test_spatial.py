"""Spatial sparse attention: its oracle, cells of any occupancy, the order of tokens, windows."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.sparse_select import Cells, grid_of, spatial_sparse_attention
from tests.helpers import draws, near, qkv, run, weights_of
from tests.ops.plain import blend, kv, weights

B, T, N, K, H = 2, 10, 4, 2, 8
rng = np.random.default_rng(0)
PLACES = tuple(map(tuple, rng.permutation(64)[:T, None] // [16, 4, 1] % 4))


def members(places, size, shift=0):
    """{cell: its tokens}, by coordinates."""
    found = {}
    for t, place in enumerate(places):
        found.setdefault(tuple((x + shift) // size for x in place), []).append(t)
    return dict(sorted(found.items()))


def spatial_sparse_attention_oracle(q, k, v, gates, places, cells, compressed=None):
    (B, T, N, _), K = q.shape, k.shape[2]
    small, large = members(places, cells.compress), members(places, cells.select)
    mean = lambda x: np.stack([x[:, ts].mean(1) for ts in small.values()], axis=1)
    keys, values = compressed or (mean(k), mean(v))
    w = weights(q, keys, None)
    chosen = np.zeros((B, N, T, T), bool)
    for b, t, g in np.ndindex(B, T, K):
        score = dict.fromkeys(large, 0.0)
        for c, cell in enumerate(small):
            parent = tuple(x // (cells.select // cells.compress) for x in cell)
            score[parent] += sum(w[b, n, t, c] for n in range(N) if kv(q, k, n) == g)
        for cell in sorted(score, key=lambda c: -score[c])[: cells.top]:
            for n in (n for n in range(N) if kv(q, k, n) == g):
                chosen[b, n, t, large[cell]] = True
    near_by = np.zeros((T, T), bool)
    for ts in members(places, cells.window, cells.shift).values():
        near_by[np.ix_(ts, ts)] = True
    parts = blend(w, values), blend(weights(q, k, chosen), v), blend(weights(q, k, near_by), v)
    return sum(gates[:, :, None, c, None] * part for c, part in enumerate(parts))


def inputs():
    return *qkv(B, T, N, H, K=K), draws((B, T, 3))[0]


def test_tokens_in_another_order_are_the_same():
    args, cells = inputs(), Cells(1, 2, 2, 2, 1)
    out = run(spatial_sparse_attention, *args, places=PLACES, cells=cells)
    shuffle = rng.permutation(T)
    again = run(
        spatial_sparse_attention,
        *(x[:, shuffle] for x in args),
        places=tuple(PLACES[t] for t in shuffle),
        cells=cells,
    )
    near(again, out[:, shuffle])


def test_cells_are_filled_up_and_a_window_sees_its_own():
    grid = grid_of(PLACES, 2)
    assert not grid.order.full and len(grid.order.order) > T
    filled = np.asarray(grid.order.order).reshape(-1, grid.order.size)
    for tokens, ts in zip(filled, members(PLACES, 2).values(), strict=True):
        assert tokens[tokens < T].tolist() == ts
    q, k, _, gates = inputs()
    gates = gates * 0 + jnp.asarray([0.0, 0.0, 1.0])
    op = functools.partial(run, spatial_sparse_attention, places=PLACES, cells=Cells(1, 2, 3, 1))
    seen = weights_of(op, q, k, gates) > 0
    for i, j in np.ndindex(T, T):
        same = all(x // 3 == y // 3 for x, y in zip(PLACES[i], PLACES[j], strict=True))
        assert (seen[:, :, i, j] == same).all()


def test_a_network_may_make_the_summaries():
    *args, gates = inputs()
    count = len(members(PLACES, 2))
    pair = tuple(draws((B, count, K, H), (B, count, K, H), seed=5))
    got = spatial_sparse_attention(
        *args, gates, places=PLACES, cells=Cells(2, 4, 2, 1), compressed=pair
    )
    exact = [np.float64(x) for x in (*args, gates)]
    want = spatial_sparse_attention_oracle(
        *exact, PLACES, Cells(2, 4, 2, 1), tuple(np.float64(x) for x in pair)
    )
    near(got, want)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="places: 3 of them; expected T = 10"):
        spatial_sparse_attention(*inputs(), places=PLACES[:3], cells=Cells())
    with pytest.raises(ValueError, match="expected compress to divide select"):
        spatial_sparse_attention(*inputs(), places=PLACES, cells=Cells(2, 3))
