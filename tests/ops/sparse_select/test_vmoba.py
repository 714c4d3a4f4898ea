"""VMoBA: its oracle, numbers of the released choice, blocks of layers, MoBA as a special case."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import (
    vmoba,
    vmoba_block,
    vmoba_by_head,
    vmoba_by_query,
    vmoba_top_k,
)
from tests.helpers import close, exact, near, pairs_of, qkv, run
from tests.ops.plain import blend, blocks_of_cells, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def vmoba_oracle(q, k, v, shape, block, choose):
    (B, T, N, _), K = q.shape, k.shape[2]
    tau, seen = choose.keywords["tau"], np.zeros((B, N, T, T), bool)
    cells_of = blocks_of_cells(shape, block)
    own = {(i, c) for c, cells in cells_of.items() for i in cells}
    for b, n in np.ndindex(B, N):
        g = {}
        for c, cells in cells_of.items():
            mean = sum(k[b, j, n * K // N] for j in cells) / len(cells)
            g |= {(i, c): q[b, i, n] @ mean for i in range(T)}
        rows = [{x: g[x] for x in g if x[0] == i} for i in range(T)]
        groups = rows if choose.func is vmoba_by_query else [g]
        for i, c in own.union(*(_others(group, own, tau) for group in groups)):
            seen[b, n, i, cells_of[c]] = True
    return blend(weights(q, k, seen), v)


def _others(g, own, tau):
    """The pairs beside the own ones, the largest first, and of equals the earlier."""
    low, high = min(g.values()), max(g.values())
    share = {x: (value - low) / (high - low or 1.0) for x, value in g.items()}
    need = tau * (sum(share.values()) + 1e-6) - sum(share[x] for x in share if x in own)
    taken = []
    for x in sorted((x for x in share if x not in own), key=lambda x: -share[x]):
        if taken and sum(share[y] for y in taken) >= need:
            break
        taken.append(x)
    return taken


@pytest.mark.parametrize(
    ("choose", "tau", "seen", "want"),
    [
        (vmoba_by_query, 0.5, ("01", "01", "02", "013"), (3.4205, 3.4205, 12.8011, 38.4194)),
        (vmoba_by_head, 0.5, ("0", "01", "02", "03"), (1, 3.4205, 12.8011, 48.3784)),
        (vmoba_by_head, 0.25, ("0", "01", "2", "3"), (1, 3.4205, 100, 1000)),
    ],
)
def test_four_tokens_in_blocks_of_one_by_hand(choose, tau, seen, want):
    with jax.enable_x64():
        q, k, v = np.ones(4), np.array([2.0, 1, 0, -1]), np.array([1.0, 10, 100, 1000])
        q, k, v = (jnp.asarray(x.reshape(1, 4, 1, 1)) for x in (q, k, v))
        out, chosen = observed(q, k, v, (4,), (1,), functools.partial(choose, tau=tau))
    assert pairs_of(chosen)[0][0] == {(i, int(c)) for i, row in enumerate(seen) for c in row}
    near(out[0, :, 0, 0], want, 1e-5)


def observed(q, k, v, shape, block, choose):
    """The output, and the blocks that were chosen."""
    kept = []

    def spy(*args, **sizes):
        kept.append(choose(*args, **sizes))
        return kept[-1]

    return vmoba(q, k, v, shape=shape, block=block, choose=spy), kept[-1]


@pytest.mark.parametrize("choose", [vmoba_by_query, vmoba_by_head])
def test_vmoba_equals_its_oracle_for_small_and_large_shares(choose):
    """Blocks that do not divide the frames; more for a larger share, and always the own block."""
    counts = []
    with jax.enable_x64():
        q, k, v = qkv(B, T, N, H, K=K, dtype=np.float64)
        for tau in (1e-6, 0.25, 0.7, 1.0):
            of = functools.partial(choose, tau=tau)
            given = {"shape": (3, 2, 2), "block": (2, 2, 1), "choose": of}
            out, chosen = run(observed, q, k, v, **given)
            close(out, vmoba_oracle(*exact((q, k, v)), **given), 1e-12)
            own = blocks_of_cells((3, 2, 2), (2, 2, 1)).values()
            dense = np.asarray(chosen.dense(len(own)))
            assert all(dense[:, cells, :, c].all() for c, cells in enumerate(own))
            counts.append(dense.sum((1, 3)))
        near(out, multi_head_attention(q, k, v), 1e-12)
    assert (np.diff(counts, axis=0) >= 0).all() and (counts[-1] == 12 * 4).all()
    assert (counts[1] < counts[2]).all() and (counts[2] < counts[3]).all()


def test_heads_get_what_they_deserve():
    q, k, v = qkv(B, T, N, H, K=K)
    choose = functools.partial(vmoba_by_head, tau=0.5)
    _, chosen = observed(q, k, v, (3, 2, 2), (1, 2, 1), choose)
    assert len(set(np.asarray(chosen.valid.sum((1, 3))).ravel())) > 1


def test_the_blocks_of_layers_go_round():
    got = [vmoba_block(layer, (8, 6, 4), (2, 3, 2)) for layer in range(4)]
    assert got == [(2, 6, 4), (8, 3, 2), (2, 3, 2), (2, 6, 4)]


def test_vmoba_of_the_top_two_over_slabs_is_moba_without_order():
    q, k, v = qkv(B, T, N, H, K=K)
    shape = (6, 1, 2)
    block = vmoba_block(0, shape, (2, 1, 1))
    choose = functools.partial(vmoba_top_k, k=2)
    got = run(vmoba, q, k, v, shape=shape, block=block, choose=choose)
    seen = np.zeros((B, N, T, T), bool)
    for b, n, i in np.ndindex(B, N, T):
        likes = [q[b, i, n] @ k[b, 4 * c : 4 * c + 4, n // 2].mean(0) for c in range(3)]
        others = [c for c in np.argsort(likes) if c != i // 4]
        for c in (i // 4, others[-1]):
            seen[b, n, i, 4 * c : 4 * c + 4] = True
    near(got, blend(weights(exact(q), exact(k), seen), exact(v)))
    assert not np.allclose(got, run(multi_head_attention, q, k, v), atol=0.01)


@pytest.mark.parametrize("choose", [vmoba_by_query, vmoba_by_head])
def test_vmoba_of_a_whole_share_sees_everything_however_far_apart_scores_are(choose):
    q, k, v = qkv(B, T, N, H, K=K)
    q = 200 * q
    everything = functools.partial(choose, tau=1.0)
    got = run(vmoba, q, k, v, shape=(3, 2, 2), block=(1, 2, 2), choose=everything)
    want = run(multi_head_attention, q, k, v)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    alike = run(vmoba, 0 * q, k, v, shape=(3, 2, 2), block=(1, 2, 2), choose=choose)
    near(alike, run(multi_head_attention, 0 * q, k, v))  # nothing to prefer: all is seen


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
