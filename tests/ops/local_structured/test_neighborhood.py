"""Neighborhood attention: its oracle, grids of 1 to 3 axes, dilation, the learned bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.local_structured import neighborhood_attention
from tests.helpers import draws, exact, near, qkv, run, weights_of
from tests.ops.plain import blend, both, weights

B, T, N, H = 2, 9, 4, 8


def _neighbors(x, extent, window, stride, dilation, causal):
    """The `window` positions on one axis that position x sees.

    Positions of one dilation class (equal modulo `dilation`) are counted 0, 1, 2, ...; runs of
    `stride` of them share the window of their leader, the middle one (right of the middle when
    the run is even), and the window is shifted inward at the borders.  On a causal axis the leader
    is the last of its run, its window ends with it, and what lies after x is dropped.
    """
    members = [p for p in range(extent) if p % dilation == x % dilation]
    place = members.index(x)
    if causal:
        leader = min(place // stride * stride + stride - 1, len(members) - 1)
        return [p for p in members[max(leader - window + 1, 0) : leader + 1] if p <= x]
    leader = min(place // stride * stride + stride // 2, len(members) - 1)
    start = min(max(leader - window // 2, 0), max(len(members) - window, 0))
    return members[start : start + window]


def neighborhood_attention_oracle(
    q, k, v, shape, window, stride=1, dilation=1, causal=False, table=None, allowed=None
):
    axes = len(shape)
    per_axis = lambda x: (x,) * axes if isinstance(x, int) else tuple(x)
    window, stride, dilation, causal = map(per_axis, (window, stride, dilation, causal))
    cells = list(np.ndindex(*shape))
    sees = lambda c, d, a: (
        d[a] in _neighbors(c[a], shape[a], window[a], stride[a], dilation[a], causal[a])
    )
    near = np.array([[all(sees(c, d, a) for a in range(axes)) for d in cells] for c in cells])
    H, K, N = q.shape[-1], k.shape[2], q.shape[2]

    def score(b, n, i, j):
        s = q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H)
        if table is None:
            return s
        steps = [(cells[j][a] - cells[i][a]) // dilation[a] + window[a] - 1 for a in range(axes)]
        return s + table[(n, *steps)]

    return blend(weights(q, k, both(allowed, near), logit=score), v)


GRIDS = {
    "1-D": {"shape": (11,), "window": 4, "stride": 2},
    "1-D dilated and strided": {"shape": (13,), "window": 3, "stride": 3, "dilation": 4},
    "2-D": {"shape": (5, 7), "window": (3, 5), "stride": (1, 2), "dilation": (1, 1)},
    "2-D dilated": {"shape": (6, 7), "window": (3, 2), "dilation": (2, 3)},
    "2-D causal in time": {
        "shape": (7, 5),
        "window": (3, 3),
        "stride": (2, 1),
        "dilation": (2, 1),
        "causal": (True, False),
    },
    "3-D": {"shape": (2, 3, 4), "window": (1, 3, 2), "stride": (1, 2, 1), "dilation": (2, 1, 2)},
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_neighborhoods_on_grids_with_a_relative_bias(grid):
    q, k, v = qkv(B, int(np.prod(grid["shape"])), N, H)
    windows = np.broadcast_to(grid["window"], len(grid["shape"]))
    (table,) = draws((N, *(2 * w - 1 for w in windows)), seed=5)
    for extra in ({}, {"table": table}):
        wanted = neighborhood_attention_oracle(*exact((q, k, v)), **grid, **exact(extra))
        near(run(neighborhood_attention, q, k, v, **grid, **extra), wanted)
    if "causal" in grid:  # at its beginning there are fewer keys
        return
    weights = weights_of(neighborhood_attention, q, k, **grid)
    assert ((weights > 0).sum(-1) == windows.prod()).all()


def test_dilation_is_attention_on_interleaved_sub_grids():
    q, k, v = qkv(B, 24, N, H)
    out = neighborhood_attention(q, k, v, shape=(4, 6), window=2, dilation=2)
    grid = lambda x: x.reshape(B, 4, 6, N, H)
    for row, column in np.ndindex(2, 2):
        cut = lambda x, at=np.s_[:, row::2, column::2]: grid(x)[at].reshape(B, 6, N, H)
        near(cut(out), neighborhood_attention(cut(q), cut(k), cut(v), shape=(2, 3), window=2))


def test_a_bias_of_another_window_is_refused():
    q, k, v = qkv(B, 12, N, H)
    with pytest.raises(ValueError, match=r"table: shape \(4, 3, 3\); expected \(4, 5, 3\)"):
        table = jnp.zeros((N, 3, 3))
        neighborhood_attention(q, k, v, shape=(4, 3), window=(3, 2), table=table)


def test_the_bias_of_a_neighborhood_learns():
    q, k, v = qkv(B, 12, N, H)
    (table,) = draws((N, 5, 3), seed=5)
    op = functools.partial(neighborhood_attention, q, k, v, shape=(4, 3), window=(3, 2))
    slopes = jax.jit(jax.grad(lambda t: jnp.square(op(table=t)).sum()))(table)
    assert (jnp.abs(slopes) > 0).all()
