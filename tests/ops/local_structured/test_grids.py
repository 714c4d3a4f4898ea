"""Windows of grids: the oracle, shifts, tables, boxes with halos and dilation, means, places."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.numerics import Affine
from attnjax.ops.local_structured import window_attention
from attnjax.ops.local_structured.grids import PlaceNet, adaptive_means, along, boxes
from tests.helpers import draw, draws, exact, near, qkv, run, weights_of
from tests.ops.plain import blend, weights

B, N, K, H = 2, 4, 2, 8


def window_attention_oracle(q, k, v, shape, window, shift=0, table=None):
    """Windows of the map rolled by -shift, after which cells from both sides do not meet."""
    axes = len(shape)
    window, shift = (((x,) * axes if isinstance(x, int) else x) for x in (window, shift))
    cells = list(np.ndindex(*shape))

    def home(cell):
        """The window of a cell, and on each axis whether it came around."""
        found = []
        for x, n, w, s in zip(cell, shape, window, shift, strict=True):
            filled = -(-n // w) * w
            rolled = (x - s) % filled
            found.append((rolled // w, x - s < 0))
        return found

    together = np.array([[home(a) == home(b) for b in cells] for a in cells])
    H, K, N = q.shape[-1], k.shape[2], q.shape[2]

    def score(b, n, i, j):
        s = q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H)
        if table is None:
            return s
        return s + table[(n, *(cells[j][a] - cells[i][a] + window[a] - 1 for a in range(axes)))]

    return blend(weights(q, k, together, logit=score), v)


GRIDS = {
    "1-D": {"shape": (11,), "window": 4, "shift": 3},
    "2-D": {"shape": (4, 6), "window": (2, 3)},
    "2-D shifted": {"shape": (4, 7), "window": (2, 4), "shift": (1, 2)},
    "3-D": {"shape": (2, 3, 4), "window": (1, 2, 2), "shift": (0, 1, 1)},
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_windows_of_grids_with_a_table(grid):
    q, k, v = qkv(B, int(np.prod(grid["shape"])), N, H, K=K)
    windows = np.broadcast_to(grid["window"], len(grid["shape"]))
    (table,) = draws((N, *(2 * w - 1 for w in windows)), seed=5)
    want = window_attention_oracle(*exact((q, k, v)), **grid, table=exact(table))
    near(run(window_attention, q, k, v, **grid, table=table), want)


def test_windows_do_not_meet_and_a_shift_lets_their_neighbors():
    q, k, _ = qkv(1, 16, 1, H)
    seen = weights_of(window_attention, q, k, shape=(4, 4), window=2)[0, 0] > 0
    assert (seen.sum(-1) == 4).all()
    shifted = weights_of(window_attention, q, k, shape=(4, 4), window=2, shift=1)[0, 0] > 0
    corner, edge, middle = 0, 1, 5
    assert [shifted[i].sum() for i in (corner, edge, middle)] == [1, 2, 4]
    assert not (seen & shifted)[5, [6, 9, 10]].any()


def test_boxes_are_taken_and_restored():
    x = draw(B, 30, 3)
    for how in ({"size": (2, 3)}, {"size": 4, "shift": 3}, {"size": (2, 2), "dilation": (2, 3)}):
        cut = boxes((5, 6), **how)
        near(cut.restored(cut.take(x)), x)
        assert sorted(cut.cells[cut.cells < 30]) == list(range(30))
    cut = boxes((6, 6), 3, dilation=2)  # every second cell, both ways
    assert cut.cells[1].reshape(3, 3).tolist() == [[1, 3, 5], [13, 15, 17], [25, 27, 29]]


def test_a_halo_has_the_keys_around_and_nothing_outside():
    cut = boxes((4, 4), 2, halo=1)
    seen = np.asarray(cut.mask(1).allowed(np.arange(4)[:, None], np.arange(16)[None]))[:, 0]
    keys = [sorted(keys[ok[0]].tolist()) for keys, ok in zip(cut.keys, seen, strict=True)]
    assert keys[0] == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert keys[3] == [5, 6, 7, 9, 10, 11, 13, 14, 15]
    assert sorted(cut.keys[0]) == [0, 1, 2, 4, 5, 6, 8, 9, 10] + [16] * 7
    assert cut.reach == (2, 2)


def test_rows_of_an_axis():
    assert along((2, 3), 0).cells.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert along((2, 3), -1).cells.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_adaptive_means_share_a_cell_where_runs_do_not_divide():
    x = draw(B, 15, 2)
    got = np.asarray(adaptive_means(x, (3, 5), (1, 2))).reshape(B, 2, 2)
    grid = np.asarray(x).reshape(B, 3, 5, 2)
    near(got[:, 0], grid[:, :, :3].mean((1, 2)))
    near(got[:, 1], grid[:, :, 2:].mean((1, 2)))


def test_places_are_log_spaced():
    """For a map of 9 cells one cell is log_8(2) = 1/3, and seven are one."""
    net = PlaceNet(Affine(jnp.eye(2), jnp.zeros(2)), Affine(jnp.eye(2), jnp.zeros(2)))
    got = net(np.array([[1, 7], [3, -1], [0, 0]]), (9, 9))
    near(got, np.array([[1 / 3, 1.0], [2 / 3, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (3, 5)}, r"shape: \(3, 5\); expected T = 12 cells"),
        ({"window": (2, 2, 2)}, r"size: \(2, 2, 2\); expected one or 2 integers of at least 1"),
        ({"table": jnp.zeros((N, 3, 5))}, r"table: shape \(4, 3, 5\); expected \(N, \*\(3, 3\)\)"),
    ],
)
def test_grids_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        window_attention(*qkv(B, 12, N, H), **({"shape": (3, 4), "window": 2} | given))
