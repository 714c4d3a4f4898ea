"""The oracle of `vmoba` in float64 loops, and its own tests."""

import functools

import jax
import numpy as np
import pytest

from attnjax.core.blocks import select
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import vmoba, vmoba_block
from tests.helpers import draw, near
from tests.ops.plain import blend, blocks_of_cells, reach, weights


def vmoba_oracle(q, k, v, shape, block, choose):
    (B, T, N, H), K = q.shape, k.shape[2]
    seen = np.zeros((B, N, T, T), bool)
    found = blocks_of_cells(shape, block)
    for b, n in np.ndindex(B, N):
        mass = {}
        for i in range(T):
            for at, cells in found.items():
                mean = sum(k[b, j, n * K // N] for j in cells) / len(cells)
                mass[i, at] = np.exp(q[b, i, n] @ mean / np.sqrt(H))
        liked = [sorted(found, key=lambda at, i=i: mass[i, at], reverse=True) for i in range(T)]
        if "k" in choose.keywords:
            pairs = {(i, at) for i in range(T) for at in liked[i][: choose.keywords["k"]]}
        else:
            pairs = set(reach(mass, choose.keywords["p"]))
        for i, at in pairs | {(i, liked[i][0]) for i in range(T)}:
            seen[b, n, i, found[at]] = True
    return blend(weights(q, k, seen), v)


def test_the_blocks_of_layers_go_round():
    got = [vmoba_block(layer, (8, 6, 4), (2, 3, 2)) for layer in range(4)]
    assert got == [(2, 6, 4), (8, 3, 2), (2, 3, 2), (2, 6, 4)]


def qkv(T=12, N=4, K=2, H=8, seed=0):
    return draw(2, T, N, H, seed=seed), draw(2, T, K, H, seed=seed + 1), draw(2, T, K, H, seed=9)


def run(fn, *args, **static):
    """fn of arrays, jitted; some programs hold integers and selectors of blocks as well."""
    return jax.jit(functools.partial(fn, **static))(*args)


def test_vmoba_sees_more_pairs_with_more_mass_and_always_one():
    q, k, v = qkv()
    shape, block = (3, 2, 2), (2, 2, 1)  # blocks that do not divide the frames

    @jax.jit
    def of(p):
        chosen = []

        def choose(mass, **sizes):
            chosen.append(select.top_p_of_head(mass, p, **sizes))
            return chosen[0]

        out = vmoba(q, k, v, shape=shape, block=block, choose=choose)
        return out, chosen[0].valid.sum((1, 3))

    outs, counts = map(np.asarray, zip(*map(of, (1e-6, 0.2, 0.5, 0.8, 1.1)), strict=True))
    assert (np.diff(counts, axis=0) >= 0).all() and (counts[0] == 1).all()
    assert len(set(counts[2].ravel())) > 1, "heads get what they deserve"
    assert (counts[-1] == 12 * 4).all()
    best = functools.partial(select.top_k, k=1)
    near(outs[0], run(vmoba, q, k, v, shape=shape, block=block, choose=best))
    near(outs[-1], run(multi_head_attention, q, k, v))


def test_vmoba_of_scores_far_apart_still_sees_everything():
    q, k, v = qkv()
    q = 200 * q  # mass of most pairs underflows
    everything = functools.partial(select.top_p_of_head, p=1.0)
    got = run(vmoba, q, k, v, shape=(3, 2, 2), block=(1, 2, 2), choose=everything)
    near(got, run(multi_head_attention, q, k, v), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"shape": (3, 2, 1), "block": (1, 1, 1)}, r"shape: \(3, 2, 1\); expected T = 12"),
        ({"shape": (3, 2, 2), "block": (2, 2)}, r"block: \(2, 2\); expected 3 positive lengths"),
        ({"shape": (3, 2, 2), "block": (2, 0, 2)}, "expected 3 positive lengths"),
    ],
)
def test_vmoba_refuses_what_does_not_fit(given, told):
    with pytest.raises(ValueError, match=told):
        vmoba(*qkv(), **given)
