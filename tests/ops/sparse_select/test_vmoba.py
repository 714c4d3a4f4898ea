"""VMoBA: its oracle, the blocks of layers, budgets by mass, and MoBA as a special case."""

import functools

import jax
import numpy as np
import pytest

from attnjax.core.blocks import select
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import vmoba, vmoba_block
from tests.helpers import exact, near, qkv, run
from tests.ops.plain import blend, blocks_of_cells, reach, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def vmoba_oracle(q, k, v, shape, block, choose):
    (B, T, N, H), K = q.shape, k.shape[2]
    seen = np.zeros((B, N, T, T), bool)
    cells_of = blocks_of_cells(shape, block)
    for b, n in np.ndindex(B, N):
        mass = {}
        for i in range(T):
            for c, cells in cells_of.items():
                mean = sum(k[b, j, n * K // N] for j in cells) / len(cells)
                mass[i, c] = np.exp(q[b, i, n] @ mean / np.sqrt(H))
        liked = [sorted(cells_of, key=lambda c, i=i: mass[i, c], reverse=True) for i in range(T)]
        if "k" in choose.keywords:
            pairs = {(i, c) for i in range(T) for c in liked[i][: choose.keywords["k"]]}
        else:
            pairs = set(reach(mass, choose.keywords["p"]))
        for i, c in pairs | {(i, liked[i][0]) for i in range(T)}:
            seen[b, n, i, cells_of[c]] = True
    return blend(weights(q, k, seen), v)


def test_the_blocks_of_layers_go_round():
    got = [vmoba_block(layer, (8, 6, 4), (2, 3, 2)) for layer in range(4)]
    assert got == [(2, 6, 4), (8, 3, 2), (2, 3, 2), (2, 6, 4)]


def test_vmoba_sees_more_pairs_with_more_mass_and_always_one():
    q, k, v = qkv(B, T, N, H, K=K)
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


def test_vmoba_by_query_over_slabs_is_moba_without_order():
    q, k, v = qkv(B, T, N, H, K=K)
    shape = (6, 1, 2)
    block = vmoba_block(0, shape, (2, 1, 1))
    choose = functools.partial(select.top_k, k=2)
    got = run(vmoba, q, k, v, shape=shape, block=block, choose=choose)
    seen = np.zeros((B, N, T, T), bool)
    for b, n, i in np.ndindex(B, N, T):
        likes = [q[b, i, n] @ k[b, 4 * c : 4 * c + 4, n // 2].mean(0) for c in range(3)]
        for c in np.argsort(likes)[1:]:
            seen[b, n, i, 4 * c : 4 * c + 4] = True
    near(got, blend(weights(*exact((q, k)), seen), exact(v)))
    assert not np.allclose(got, run(multi_head_attention, q, k, v), atol=0.01)


def test_vmoba_of_scores_far_apart_still_sees_everything():
    q, k, v = qkv(B, T, N, H, K=K)
    q = 200 * q  # mass of most pairs underflows
    everything = functools.partial(select.top_p_of_head, p=1.0)
    got = run(vmoba, q, k, v, shape=(3, 2, 2), block=(1, 2, 2), choose=everything)
    want = run(multi_head_attention, q, k, v)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


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
        vmoba(*qkv(B, T, N, H, K=K), **given)
