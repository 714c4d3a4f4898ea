"""Native sparse attention, landmarks, cached blocks and the delta correction beyond the laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import attend, masks
from attnjax.core.blocks import block_maps, runs
from attnjax.core.pairwise.attend import attention_weights
from attnjax.core.positions import rotary
from attnjax.nn import NativeSparse
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import (
    assemble,
    block_attention,
    delta_attention,
    insert_landmarks,
    landmark_attention,
    landmark_retrieval,
    nsa,
    reindex,
    remove_landmarks,
)
from attnjax.ops.sparse_select.nsa import Branches, native_sparse_attention
from tests.oracles import ORACLES

B, T, N, K, H = 2, 13, 4, 2, 8


def draw(*shapes, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def qkv(T=T, seed=0):
    return draw((B, T, N, H), (B, T, K, H), (B, T, K, H), seed=seed)


def close(got, want, tolerance=2e-5):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


def exact(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# ----------------------------------------------------------------------- native sparse attention

# Runs of 4 at strides of 2, blocks of 4: 4 of 8 blocks of 31 tokens, so one is chosen freely.
SIZES = Branches(length=4, stride=2, size=4, top=4, window=5)
LONG = 31


def test_nsa_runs_its_branches_over_keys_of_their_own():
    q, k, v = qkv(LONG)
    n = (LONG - 4) // 2 + 1
    (gates,) = draw((B, LONG, 1, 3), seed=1)
    compressed, local = draw(*((B, n, K, H),) * 2, seed=2), draw(*((B, LONG, K, H),) * 2, seed=3)
    options = {"compressed": tuple(compressed), "local": tuple(local)}
    got = native_sparse_attention(q, k, v, gates, branches=SIZES, **options)
    oracle = ORACLES["native_sparse_attention"]
    close(got, oracle(*exact((q, k, v, gates)), SIZES, **exact(options)))


def layer(**sizes):
    return NativeSparse(12, N, kv_heads=K, branches=SIZES, rngs=nnx.Rngs(0), **sizes)


def test_nsa_layer_is_the_paper_s_formula_from_the_input_on():
    module = layer()
    module.compress[0].code[...] *= 50  # as large as what it is added to
    (x,) = draw((B, LONG, 12))
    weight = lambda m: exact(m.kernel[...])
    project = lambda m: np.einsum("btw,wnh->btnh", exact(x), weight(m))
    runs = []
    for phi, m in zip(module.compress, module.compressed, strict=True):
        each = []
        for start in range(0, LONG - 4 + 1, 2):
            block = project(m)[:, start : start + 4] + exact(phi.code[...])[:, None]
            flat = block.transpose(0, 2, 1, 3).reshape(B, K, -1)
            hidden = np.maximum(flat @ weight(phi.inner) + exact(phi.inner.bias[...]), 0)
            each.append(hidden @ weight(phi.outer) + exact(phi.outer.bias[...]))
        runs.append(np.stack(each, axis=1))
    hidden = np.maximum(exact(x) @ weight(module.hidden) + exact(module.hidden.bias[...]), 0)
    logits = np.einsum("btw,wnc->btnc", hidden, weight(module.mix)) + exact(module.mix.bias[...])
    out = ORACLES["native_sparse_attention"](
        *(project(m) for m in (module.q, module.k, module.v)),
        1 / (1 + np.exp(-logits)),
        SIZES,
        compressed=runs,
        local=[project(m) for m in module.local],
    )
    close(module(x), np.einsum("btnh,nhw->btw", out, weight(module.o)))


def test_nsa_layer_is_causal_and_trains_all_it_has():
    module = layer()
    x, other = draw((B, LONG, 12), (B, LONG, 12))
    fn = nnx.jit(lambda m, x: m(x))
    past = fn(module, x)
    for now in (9, 18):  # inside a block, and before a run is whole
        changed = fn(module, jnp.concatenate([x[:, :now], other[:, now:]], 1))
        close(changed[:, :now], past[:, :now], 1e-6)
        assert jnp.abs(changed[:, now:] - past[:, now:]).max() > 1e-2
    slope = nnx.jit(nnx.grad(lambda m: (m(x) ** 2).sum()))(module)
    idle = {
        jax.tree_util.keystr(path)
        for path, g in jax.tree.leaves_with_path(nnx.state(slope))
        if jnp.abs(g).max() < 1e-4
    }
    # what is the same in all keys moves no weight
    assert idle == {"['compress'][0]['outer']['bias'].value"}
    with pytest.raises(ValueError, match="context is given, expected None"):
        module(x, x)


def chosen(q, runs, mask=masks.causal, sizes=SIZES):
    keys = jnp.zeros((1, q.shape[1], 1, H))
    found = nsa.nsa_blocks(q, keys, sizes, runs, mask)
    return np.asarray(jnp.where(found.valid, found.indices, -1))


def test_nsa_selects_for_a_group_the_first_the_two_latest_and_the_most_important():
    """Of a key that only the second of two heads looks for, in a run that two blocks share."""
    q = jnp.zeros((1, LONG, 2, H)).at[:, :, 1, 0].set(30.0)
    runs = jnp.zeros((1, 14, 1, H)).at[:, 5, 0, 0].set(30.0)  # tokens 10..13: blocks 2 and 3
    found = chosen(q, runs, sizes=SIZES._replace(top=5))
    assert found.shape == (1, LONG, 1, 5)
    assert [set(row) for row in found[0, [0, 5, 12, 13, 30], 0]] == [
        {0, -1}, {0, 1, -1}, {0, 2, 3, 1, -1}, {0, 2, 3, 1, -1}, {0, 2, 3, 6, 7},
    ]  # fmt: skip
    unseen = chosen(q, runs, masks.causal & ~masks.prefix(11), SIZES._replace(top=4))
    assert set(unseen[0, 30, 0]) != set(chosen(q, runs)[0, 30, 0])


def test_nsa_few_blocks_are_not_all_blocks():
    q, k, v = qkv(LONG)
    gates = jnp.zeros((B, LONG, 1, 3)).at[..., 1].set(1.0)
    op = functools.partial(native_sparse_attention, q, k, v, gates)
    dense = multi_head_attention(q, k, v, mask=masks.causal)
    close(op(branches=SIZES._replace(top=8)), dense)
    close(op(branches=SIZES._replace(top=99)), dense)
    few = op(branches=SIZES)
    close(few[:, :16], dense[:, :16])  # they have no more than four blocks
    assert jnp.abs(few[:, 16:] - dense[:, 16:]).max() > 0.1


def test_nsa_tells_what_does_not_fit():
    q, k, v = qkv()
    gates = jnp.ones((B, T, N, 3))
    op = functools.partial(native_sparse_attention, q, k, v)
    for wrong in (Branches(stride=5), Branches(size=40), Branches(top=2), Branches(window=0)):
        with pytest.raises(ValueError, match="branches: .* expected stride to divide"):
            op(gates, branches=wrong)
    with pytest.raises(ValueError, match=r"gates: shape \(2, 13, 4, 2\); expected \(B,T,N or 1,3"):
        op(gates[..., :2])
    with pytest.raises(ValueError, match="compressed: 13 keys; expected 5 runs"):
        op(gates, compressed=(k, v), branches=SIZES)


def test_weights_taken_a_few_rows_at_a_time_are_those_of_all(monkeypatch):
    monkeypatch.setattr(block_maps, "_ROWS", 4)
    q, k, _ = qkv(29)
    looked_at = set()

    def keep(w, first):
        looked_at.add(w.shape[-1])
        w = jnp.pad(w, ((0, 0),) * 3 + ((0, 29 - w.shape[-1]),))
        return jnp.swapaxes(w, 1, 2), jnp.broadcast_to(first + jnp.arange(4), (B, 4))

    def taken(mask):
        looked_at.clear()
        w, rows = block_maps.reduce_rows(q, k, keep, mask=mask)
        close(jnp.swapaxes(w, 1, 2), attention_weights(q, k, mask=mask), 1e-6)
        assert np.array_equal(rows, np.broadcast_to(np.arange(29), (B, 29)))
        return set(looked_at)

    assert taken(masks.causal) == {8, 16, 24, 29}  # early rows do not compute what they cannot see
    assert taken(masks.sinks(3)) == {8}
    assert taken(None) == {29}


def test_a_run_is_seen_where_both_its_ends_are():
    seen = np.random.default_rng(0).random((9, 13)) < 0.7
    ends = [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11)]
    for mask in (masks.array(seen), masks.causal, masks.causal & masks.array(seen)):
        of_runs = runs.mask_of_runs(mask, 9, 13, 4, 2)
        tokens = mask.dense(9, 13)
        got = of_runs.dense(9, 5)
        for c, (first, last) in enumerate(ends):
            assert np.array_equal(got[:, c], tokens[:, first] & tokens[:, last])
        tiles = of_runs.tiles(9, 5, 3, 2)
        parts = [got[r : r + 3, c : c + 2] for r in (0, 3, 6) for c in (0, 2, 4)]
        for kind, part in zip(tiles.ravel(), parts, strict=True):
            assert (kind == masks.EMPTY) <= (not part.any())
            assert (kind == masks.FULL) <= part.all()
    assert (runs.mask_of_runs(masks.causal, 9, 13, 4, 2).tiles(9, 5, 3, 2) == masks.EMPTY).any()
    assert not runs.mask_of_runs(masks.causal, 9, 3, 4, 2).dense(9, 1).any()  # no whole run


# ------------------------------------------------------------------------------------ landmarks

BLOCKS = 19  # tokens: four blocks of three and a landmark, and three more


def weights_of(op, q, k):
    """The weights (B,N,T,S) of an op that is linear in v, read with the identity for v."""
    S = k.shape[1]
    eye = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, k.shape[2], S))
    return np.asarray(op(q, k, eye)).transpose(0, 2, 1, 3)


def test_landmarks_stand_behind_their_blocks_and_come_out_again():
    ids = jnp.arange(8)[None] + 10
    assert insert_landmarks(ids, 3, 7).tolist() == [[10, 11, 12, 7, 13, 14, 15, 7, 16, 17]]
    tokens, landmark = draw((B, 9, H), (H,))
    inserted = insert_landmarks(tokens, 3, landmark)
    assert inserted.shape == (B, 12, H)
    assert np.array_equal(inserted[:, [3, 7, 11]], np.broadcast_to(landmark, (B, 3, H)))
    assert np.array_equal(remove_landmarks(inserted, 3), tokens)
    assert insert_landmarks(ids[:, :2], 3, 7).tolist() == [[10, 11]]


def test_landmarks_have_no_weight_and_pass_theirs_to_their_blocks():
    q, k, _ = qkv(BLOCKS)
    w = weights_of(functools.partial(landmark_attention, block=3), q, k)
    close(w.sum(-1), np.ones((B, N, BLOCKS)))
    assert not w[..., 3::4].any()
    # a landmark liked more takes attention from all other blocks, in their proportions
    liked = weights_of(
        functools.partial(landmark_attention, block=3), q, k.at[:, 3].add(q[:, 18, ::2])
    )[:, ::2, 18]
    before = w[:, ::2, 18]
    assert (liked[..., :3] > before[..., :3]).all()
    close(liked[..., 4:].sum(-1) / before[..., 4:].sum(-1), liked[..., 18] / before[..., 18])
    close(liked[..., 0] / liked[..., 1], before[..., 0] / before[..., 1], 1e-4)


def test_landmark_weights_and_their_gradients_stand_large_scores():
    q, k, v = qkv(BLOCKS)
    big = q.at[:, ::2].multiply(1e4)
    op = lambda q, k, v: landmark_attention(q, k, v, block=3)
    value, grad = jax.value_and_grad(lambda *x: op(*x).sum(), argnums=(0, 1, 2))(big, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad)
    close(op(big, k, v), ORACLES["landmark_attention"](*exact((big, k, v)), 3), 1e-4)


def test_few_blocks_retrieved_are_not_all_blocks():
    q, k, v = qkv(BLOCKS)
    whole = landmark_attention(q, k, v, block=3)
    close(landmark_retrieval(q, k, v, block=3, top_k=4), whole)
    few = landmark_retrieval(q, k, v, block=3, top_k=1)
    close(few[:, :8], whole[:, :8])  # they have no more than one block to retrieve
    assert jnp.abs(few - whole)[:, 8:].max() > 0.05
    none = landmark_retrieval(q, k, v, block=3, top_k=0)
    inside = masks.causal & masks.document(np.arange(BLOCKS) // 4)
    inside = inside & ~masks.document(np.arange(BLOCKS) % 4 - 4, np.arange(BLOCKS) % 4 - 3)
    ordinary = np.arange(BLOCKS) % 4 != 3
    close(
        none[:, ordinary],
        multi_head_attention(q, k, v, mask=inside)[:, ordinary],
    )


@pytest.mark.parametrize("heads", [1, K])
def test_heads_that_retrieve_together_follow_the_largest_score(heads):
    q, k, v = qkv(BLOCKS)
    sizes = {"block": 3, "top_k": 1, "base": 10.0}
    together = landmark_retrieval(q, k, v, heads=heads, **sizes)
    close(together, ORACLES["landmark_retrieval"](*exact((q, k, v)), heads=heads, **sizes))
    assert jnp.abs(together - landmark_retrieval(q, k, v, **sizes)).max() > 0.05


def test_blocks_far_behind_share_one_place():
    """Two old blocks change places: their distance is cut off, so nobody far ahead notices."""
    q, k, v = qkv(BLOCKS)
    order = np.r_[4:8, 0:4, 8:BLOCKS]  # blocks 0 and 1
    op = functools.partial(landmark_retrieval, q, block=3, top_k=1)
    close(op(k[:, order], v[:, order], base=10.0)[:, 12:], op(k, v, base=10.0)[:, 12:])
    at = jnp.arange(BLOCKS)
    turned = lambda k: landmark_retrieval(
        rotary(q, at, 10.0), rotary(k, at, 10.0), v[:, order], block=3, top_k=4
    )
    assert jnp.abs(turned(k[:, order]) - turned(k))[:, 12:].max() > 0.05


def test_landmarks_tell_what_does_not_fit():
    q, k, v = qkv(BLOCKS)
    for op in (landmark_attention, landmark_retrieval):
        with pytest.raises(ValueError, match="block: 0; expected an integer of at least 1"):
            op(q, k, v, block=0)
    with pytest.raises(ValueError, match="top_k: -1; expected an integer of at least 0"):
        landmark_retrieval(q, k, v, top_k=-1)
    with pytest.raises(ValueError, match="heads: 3; expected None, N = 4, K = 2 or 1"):
        landmark_retrieval(q, k, v, heads=3)


# -------------------------------------------------------------------------------- cached blocks

IDS = np.repeat([0, 1, 2], (4, 3, 6))  # two passages and the question


def test_reindexed_keys_are_those_of_the_place():
    (k,) = draw((B, 5, K, H))
    at = jnp.arange(5)
    for offset, places in ((7, at + 7), (jnp.array([0, 30]), at + jnp.array([[0], [30]]))):
        close(reindex(rotary(k, at), offset), rotary(k, places), 1e-5)
    assert jnp.abs(reindex(k, 1) - k).max() > 0.1


def test_cached_passages_and_the_question_give_what_one_pass_gives():
    """Through two layers, so that the second one's keys depend on what the first one saw."""
    x, *maps = draw((B, T, 2 * H), *((2 * H, 2, H),) * 6)
    first, second = maps[:3], maps[3:]

    def turned(maps, x, start=0):
        q, k, v = (jnp.einsum("btw,wnh->btnh", x, m) / 4 for m in maps)
        at = jnp.arange(start, start + x.shape[1])
        return rotary(q, at), rotary(k, at), v

    def layer(maps, x, op, start=0):
        q, k, v = turned(maps, x, start)
        return x + op(q, k, v).reshape(x.shape), (k, v)

    masked = functools.partial(block_attention, blocks=IDS)
    whole = layer(second, layer(first, x, masked)[0], masked)[0]

    alone = functools.partial(attend, mask=masks.causal)
    hidden, caches = zip(
        *(layer(first, x[:, IDS == block], alone) for block in (0, 1)), strict=True
    )
    deep = [layer(second, h, alone)[1] for h in hidden]

    def behind(cached):
        k, v = assemble(cached)
        to_end = lambda *own: attend(
            own[0],
            *(jnp.concatenate(pair, axis=1) for pair in zip((k, v), own[1:], strict=True)),
            mask=masks.causal_to_end,
        )
        return to_end

    question, _ = layer(first, x[:, 7:], behind(caches), start=7)
    question, _ = layer(second, question, behind(deep), start=7)
    close(question, whole[:, 7:])
    unmoved, _ = layer(first, x[:, 7:], behind([caches[0], (caches[1][0] * 0, caches[1][1])]), 7)
    assert jnp.abs(unmoved - layer(first, x, masked)[0][:, 7:]).max() > 1e-2


def test_a_passage_does_not_depend_on_the_others():
    q, k, v = qkv()
    out = block_attention(q, k, v, IDS)
    q2, k2, v2 = (x.at[:, 4:7].set(9.0) for x in (q, k, v))
    changed = block_attention(q2, k2, v2, IDS)
    assert np.array_equal(changed[:, :4], out[:, :4])
    assert (jnp.abs(changed - out)[:, 7:].max((2, 3)) > 1e-3).all()
    close(out[:, 4:7], multi_head_attention(q[:, 4:7], k[:, 4:7], v[:, 4:7], mask=masks.causal))


def test_blocks_differ_by_example_and_padding_is_in_none():
    q, k, v = qkv()
    ids = np.stack([IDS, np.r_[IDS[:6], np.ones(5, int), -1, -1]])
    got = jax.jit(block_attention)(q, k, v, jnp.asarray(ids))
    close(got, ORACLES["block_attention"](*exact((q, k, v)), ids))
    assert not got[1, 11:].any() and got[1, :11].all()
    with pytest.raises(ValueError, match=r"blocks: shape \(2,\); expected \(T,\) or \(B,T\)"):
        block_attention(q, k, v, [0, 1])


# ----------------------------------------------------------------------------- delta correction

STREAM = masks.window(2) | masks.sinks(1)


def test_delta_rows_are_dense_and_those_behind_move_as_they_did():
    q, k, v = qkv()
    dense = multi_head_attention(q, k, v, mask=masks.causal)
    few = attend(q, k, v, mask=masks.causal & STREAM)
    out = delta_attention(q, k, v, sparse=STREAM, gamma=5, dense_last=2)
    close(out[:, [0, 5, 10, 11, 12]], dense[:, [0, 5, 10, 11, 12]], 1e-6)
    moved = np.asarray(out - few)
    for i in (6, 7, 8, 9):
        close(moved[:, i], moved[:, 5])
    assert np.abs(moved[:, 5]).max() > 0.05 and np.abs(out - dense)[:, 6:10].max() > 0.05


def test_delta_corrects_any_sparse_attention():
    q, k, v = qkv()
    blocks = lambda q, k, v: block_attention(q, k, v, IDS)
    out = delta_attention(q, k, v, sparse=blocks, gamma=4)
    few, dense = blocks(q, k, v), multi_head_attention(q, k, v, mask=masks.causal)
    close(out, few + jnp.repeat((dense - few)[:, ::4], 4, axis=1)[:, :T])
    close(out[:, 8:], dense[:, 8:])  # where the blocks are dense themselves
    assert jnp.abs(out - few).max() > 0.05


def test_delta_correction_is_nearer_to_dense_attention():
    """Where sparse attention misses what all queries look at: a value at one early place."""
    q, k, v = qkv(64)
    q, k, v = 0.3 * q.at[..., 0].add(9.0), k.at[:, 2, :, 0].add(4.0), v.at[:, 2].add(5.0)
    dense = multi_head_attention(q, k, v, mask=masks.causal)
    kept = masks.window(7) | masks.sinks(1)
    few = attend(q, k, v, mask=masks.causal & kept)
    out = delta_attention(q, k, v, sparse=kept, gamma=8)
    error = lambda x: float(jnp.abs(x - dense).mean())
    assert error(out) < 0.5 * error(few)


def test_delta_tells_what_does_not_fit():
    for wrong in ({"gamma": 0}, {"dense_last": -1}):
        with pytest.raises(ValueError, match="gamma, dense_last: .*; expected at least 1 and 0"):
            delta_attention(*qkv(), **wrong)
