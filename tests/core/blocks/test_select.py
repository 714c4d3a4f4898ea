"""Engine 3: selections, how they are chosen, and that only what is selected is worked on."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import (
    Blockwise,
    attend,
    attend_state,
    attention_scores,
    attention_weights,
    explain,
    join_states,
    masks,
    mods,
    normalizers,
    select,
)
from attnjax.core.blocks import pairs
from attnjax.core.blocks.block_maps import block_mass, block_peak
from attnjax.core.pairwise import blockwise
from attnjax.core.pairwise.cudnn import CuDNN
from attnjax.probes import best_selection, selection_recall
from tests import helpers
from tests.helpers import close, draw, value_and_pull

B, T, S, N, K, H, D = 2, 13, 11, 4, 2, 8, 6


def qkv(seed=0):
    return helpers.qkv(B, T, N, H, S=S, K=K, D=D, seed=seed)


def some_blocks(X, block_q, block_k, count, seed=7):
    """`count` random blocks for each query block, one of them invalid for the first query block."""
    U, n = -(-T // block_q), -(-S // block_k)
    chosen = select.top_k(draw(B, U, X, n, seed=seed), count, block_q=block_q, block_k=block_k)
    return replace(chosen, valid=chosen.valid.at[:, 0, :, 0].set(False))


def as_array(selection):
    """The same choice as booleans (B,N,T,S), by loops."""
    seen = np.zeros((B, N, T, S), bool)
    indices, valid = np.asarray(selection.indices), np.asarray(selection.valid)
    X = indices.shape[2]
    for b, n, i, j in np.ndindex(B, N, T, S):
        row = (b, i // selection.block_q, n * X // N)
        seen[b, n, i, j] = any(valid[row] & (indices[row] == j // selection.block_k))
    return seen


# ------------------------------------------------------------------------ attend(..., blocks=)

IDS = np.array([[0] * 5 + [1] * 8, [0] * 9 + [1] * 4])
COMPOSITIONS = {
    # selecting heads, blocks of queries and keys, mods of operands, mask, normalizer
    "softmax": (4, 1, 4, lambda x: (), masks.causal, normalizers.softmax),
    "operands": (
        2,
        3,
        4,
        lambda x: (
            mods.mod(lambda s, a, b, c, d: s * a + b * c + d, query=x["query"], key=x["key"],
                     head=x["head"], pair=x["pair"]),
            mods.relative_bias(x["table"]), mods.query_relative(x["query_table"]),
        ),
        masks.window(4, 2) | masks.sinks(2),
        normalizers.softpick(),
    ),
    "additive": (
        1,
        5,
        3,
        lambda x: (mods.additive(x["query_table"], x["key_table"], x["table"]),),
        masks.document(IDS, IDS[:, :S]),
        normalizers.softmax_sink(np.arange(4.0)),
    ),
    "two passes": (
        2,
        2,
        5,
        lambda x: (mods.alibi(x["head"]),),
        masks.array(np.random.default_rng(0).random((B, N, T, S)) < 0.7),
        normalizers.clipped_softmax(-0.1, 1.1),
    ),
    "many passes": (4, 4, 4, lambda x: (), masks.everything, normalizers.entmax(1.5)),
}  # fmt: skip


def operands():
    shapes = {
        "query": (B, T, N), "key": (B, S, K), "head": (N,), "pair": (1, N, T, S),
        "table": (N, 5), "query_table": (B, T, N, 5), "key_table": (B, S, K, 5),
    }  # fmt: skip
    return {name: draw(*shape, seed=20 + i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("name", COMPOSITIONS)
@pytest.mark.parametrize("impl", ["dense", Blockwise(4)], ids=["dense", "tiles"])
def test_a_selection_is_attend_under_the_mask_of_the_selected_blocks(name, impl):
    """In value, and in the gradient of every operand; few blocks are not all blocks."""
    X, block_q, block_k, made, mask, normalizer = COMPOSITIONS[name]
    with jax.enable_x64():
        chosen = some_blocks(X, block_q, block_k, 2)
        wide = lambda x: jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), x)
        args = wide((*qkv(), operands()))
        seen = masks.array(as_array(chosen))
        usual = {"normalizer": normalizer}

        def by_mask(q, k, v, x):
            return attend(q, k, v, mods=made(x), mask=seen & mask, impl="dense", **usual)

        def selected(q, k, v, x):
            return attend(q, k, v, blocks=chosen, mods=made(x), mask=mask, impl=impl, **usual)

        want = value_and_pull(by_mask)(*args)
        close(value_and_pull(selected)(*args), want)
        everything = attend(*args[:3], mods=made(args[3]), mask=mask, **usual)
        assert not np.allclose(want[0], everything, atol=1e-3)


@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_all_blocks_selected_is_attend(impl):
    q, k, v = qkv()
    for block_q, block_k in ((1, 4), (5, 3), (T, S)):
        chosen = select.every_block(B, T, S, block_q=block_q, block_k=block_k)
        out = attend(q, k, v, blocks=chosen, mask=masks.causal, impl=impl)
        close(out, attend(q, k, v, mask=masks.causal), 2e-6)


@pytest.mark.parametrize("impl", ["dense", Blockwise(4)], ids=["dense", "tiles"])
def test_tokens_in_an_order_of_each_head_keep_their_positions(impl):
    """Queries and keys shuffled by head, all blocks selected: causal attention, shuffled."""
    q, k, v = draw(B, T, N, H, seed=0), draw(B, T, K, H, seed=1), draw(B, T, K, D, seed=2)
    order = select.bucket_order(jnp.asarray(np.random.default_rng(5).integers(0, 3, (B, T, K))))
    places = {"q_positions": order, "k_positions": order}
    chosen = jax.tree.map(lambda x: jnp.repeat(x, K, 2), select.every_block(B, T, T, block_k=5))
    shuffled = (select.take_tokens(x, order) for x in (q, k, v))
    out = attend(*shuffled, blocks=chosen, mask=masks.causal, impl=impl, **places)
    close(out, select.take_tokens(attend(q, k, v, mask=masks.causal), order), 2e-6)


def test_forward_mode_has_its_switch():
    chosen = some_blocks(4, 1, 4, 2)

    def run(impl):
        f = lambda q, k, v: attend(q, k, v, blocks=chosen, mask=masks.causal, impl=impl)
        return jax.jit(lambda x, dx: jax.jvp(f, x, dx))(qkv(), qkv(3))

    close(run(Blockwise(4, derivative="forward")), run("dense"), 2e-5)


def test_a_nan_reaches_exactly_the_rows_that_see_it():
    q, k, v = qkv()
    chosen = some_blocks(2, 3, 4, 1)
    spoiled = k.at[0, 9, 1].set(jnp.nan)
    run = lambda k, impl: attend(q, k, v, blocks=chosen, impl=impl)
    sees = as_array(chosen)[0, 2:, :, 9].T  # of the heads that read the spoiled key
    for impl in ("dense", Blockwise(6)):
        out = run(spoiled, impl)
        assert np.array_equal(np.isnan(out[0, :, 2:]).all(-1), sees) and sees.any()
        clean = ~np.isnan(np.asarray(out))
        close(np.where(clean, out, 0.0), np.where(clean, run(k, impl), 0.0), 1e-6)


def test_large_and_small_tiles_share_the_work(monkeypatch):
    """Popular blocks fill large tiles and the rest small ones; none is lost or done twice."""
    monkeypatch.setattr(pairs, "_LARGE", 64)  # 16 queries of one head with blocks of 4 keys
    q, k, v = (draw(1, 40, 2, 4, seed=i) for i in range(3))
    popular = jnp.array([9.0, 0, 0, 0, 0, 0, 0, 0, 0, 9.0])
    chosen = select.top_k(draw(1, 40, 2, 10, seed=5) + popular, 3, block_k=4)
    seen = []
    plan = pairs.tile_lists_of_selection
    monkeypatch.setattr(
        blockwise, "tile_lists_of_selection", lambda *x: seen.append(plan(*x)) or seen[-1]
    )
    run = lambda impl: value_and_pull(
        lambda q, k, v: attend(q, k, v, blocks=chosen, mask=masks.causal, impl=impl)
    )(q, k, v)
    close(run("blockwise"), run("dense"), 1e-5)
    assert {schedule.block_q for schedules in seen for schedule in schedules} == {16, 3}


def test_equal_bits_twice_and_under_jit_one_compilation():
    q, k, v = qkv()
    traced = 0

    @jax.jit
    def run(q, chosen):
        nonlocal traced
        traced += 1
        return attend(q, k, v, blocks=chosen, impl="blockwise")

    first = run(q, some_blocks(4, 1, 4, 2))
    assert np.array_equal(first, run(q, some_blocks(4, 1, 4, 2)))
    run(q, some_blocks(4, 1, 4, 2, seed=8))
    assert traced == 1


def test_weights_and_scores_tell_of_the_selection():
    q, k, v = qkv()
    chosen = some_blocks(2, 3, 4, 2)
    terms = {"mods": (mods.soft_cap(2.0),), "mask": masks.causal, "blocks": chosen}
    seen = as_array(chosen) & np.tri(T, S, dtype=bool)
    w = attention_weights(q, k, **terms)
    assert np.array_equal(np.asarray(w) != 0, seen)
    close(jnp.einsum("BNTS,BSND->BTND", w, jnp.repeat(v, 2, 2)), attend(q, k, v, **terms), 1e-5)
    scores = np.asarray(attention_scores(q, k, **terms))
    assert np.array_equal(scores > -np.inf, seen)
    raw = np.einsum("BTNH,BSNH->BNTS", q, np.repeat(k, 2, 2)) / H**0.5
    close(scores[seen], (2 * np.tanh(raw / 2))[seen], 1e-5)


# ----------------------------------------------------------------------------- the work it does


def scores_formed(chosen, length, backward):
    """How many scores are looked at when the program runs, counted by a mod."""
    seen = []

    def counted(score):
        jax.debug.callback(lambda: seen.append(score.shape))
        return score

    x = draw(1, length, 1, 4, seed=0)
    f = lambda q: attend(
        q, x, x, blocks=chosen, mods=(mods.mod(counted),), impl=Blockwise(16)
    ).sum()
    jax.block_until_ready((jax.grad(f) if backward else f)(x))
    jax.effects_barrier()
    return sum(int(np.prod(shape)) for shape in seen)


@pytest.mark.parametrize("backward", [False, True])
def test_work_is_that_of_the_blocks_selected(backward):
    """Not that of all blocks, and not that of the static size: entries not valid cost nothing."""
    length, block = 256, 16
    scores = draw(1, length, 1, length // block, seed=1)
    full = select.top_k(scores, length // block, block_k=block)
    passes = 2 if backward else 1
    for count in (1, 4, 16):
        chosen = replace(full, valid=full.valid & (jnp.arange(length // block) < count))
        formed = scores_formed(chosen, length, backward)
        asked = passes * length * count * block
        # a last tile of each key block may be filled in part
        assert asked <= formed <= asked + passes * length // block * 15 * block


def test_memory_grows_linearly():
    def temporary(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)

        def f(q, k, v):
            scores = select.dot_scores(q[:, :: length // 64], select.mean_pool(k, length // 64))
            wide = jnp.repeat(scores, length // 64, axis=1)
            scores = select.causal_scores(wide, 1, length // 64)
            chosen = select.top_k(scores, 4, block_k=length // 64)
            return attend(q, k, v, blocks=chosen, mask=masks.causal, impl=Blockwise(64)).sum()

        program = jax.jit(jax.grad(f, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(8192) < 2.2 * temporary(4096)


def test_explain_tells_of_the_selection():
    q, k, v = qkv()
    chosen = some_blocks(4, 1, 4, 2)
    f = lambda q: attend(q, k, v, blocks=chosen)
    told = str(explain(f, q))
    assert "attend: B=2" in told
    assert "at most 2 blocks of 4 keys for 1 queries" in told
    assert "cannot: selected blocks" in told or "needs an NVIDIA GPU" in told


# ------------------------------------------------------------------------------------ bad input


def test_what_does_not_fit_is_refused():
    q, k, v = qkv()
    good = some_blocks(4, 1, 4, 2)
    call = lambda blocks, **terms: attend(q, k, v, blocks=blocks, **terms)
    with pytest.raises(ValueError, match=r"indices\[1, 2, 0, 1\] is 3, expected 0 .. 2"):
        wrong = good.indices.at[1, 2, 0].set(jnp.array([0, 3]))
        call(replace(good, indices=wrong))
    with pytest.raises(ValueError, match=r"indices\[0, 5, 1\] lists a block twice"):
        call(replace(good, indices=good.indices.at[0, 5, 1].set(1)))
    with pytest.raises(ValueError, match=r"shape \(2, 13, 4, 2\).*U = ceil\(T / block_q\) = 7"):
        call(replace(good, block_q=2))
    with pytest.raises(ValueError, match="X one of 1, K = 2, N = 4"):
        call(jax.tree.map(lambda x: x[:, :, :3], good))
    with pytest.raises(ValueError, match="block_k is 0, expected a positive integer"):
        replace(good, block_k=0)
    with pytest.raises(TypeError, match="blocks is tuple"):
        call((good.indices, good.valid))
    with pytest.raises(TypeError, match="indices has dtype float32"):
        call(replace(good, indices=good.indices * 1.0))
    with pytest.raises(ValueError, match="valid has shape"):
        call(replace(good, valid=good.valid[..., :1]))
    with pytest.raises(ValueError, match=r"attend: q has shape \(13, 4, 8\), expected rank 4"):
        attend(q[0], k, v, blocks=good)
    with pytest.raises(TypeError, match=r"mods\[0\] is int, expected a Mod"):
        call(good, mods=(3,))
    with pytest.raises(ValueError, match=r"q_positions has shape.*or \(B,T,X\) = \(2, 13, 4\)"):
        call(good, q_positions=jnp.zeros((B, T, 2), int))


@pytest.mark.parametrize("impl", ["dense", Blockwise(4)], ids=["dense", "tiles"])
def test_under_jit_an_index_out_of_range_selects_nothing(impl):
    q, k, v = qkv()
    run = jax.jit(lambda chosen: attend(q, k, v, blocks=chosen, impl=impl))
    good = some_blocks(4, 1, 4, 2)
    fewer = replace(good, valid=good.valid.at[..., 1].set(False))
    for wrong in (-1, 3, 1 << 20):
        close(run(replace(good, indices=good.indices.at[..., 1].set(wrong))), run(fewer), 1e-7)


def test_constructors_refuse_what_cannot_be():
    scores = draw(B, T, N, 5, seed=0)
    for k in (0, 6, -1, True, 2.0):
        with pytest.raises(ValueError, match="expected an integer from 1 to the 5 blocks"):
            select.top_k(scores, k, block_k=4)
    for p in (0, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"expected a share in \(0, 1\]"):
            select.top_p(jnp.abs(scores), p, block_k=4)
    with pytest.raises(ValueError, match="most is 6"):
        select.top_p(jnp.abs(scores), 0.5, most=6, block_k=4)
    with pytest.raises(ValueError, match="most is 0"):
        select.threshold(scores, 0.5, most=0, block_k=4)
    with pytest.raises(ValueError, match="size is 14, expected an integer from 1 to T = 13"):
        select.clusters(draw(B, N, 3, T, seed=0), 14)
    with pytest.raises(ValueError, match="a multiple of 3"):
        select.over_group(scores, 3)
    with pytest.raises(ValueError, match="a multiple of order's X = 3"):
        select.take_tokens(draw(B, T, N, H, seed=0), jnp.zeros((B, T, 3), int))


# ------------------------------------------------------------------------------------ choosing


def sets(selection):
    """The selected blocks of each row, as sets."""
    indices, valid = np.asarray(selection.indices), np.asarray(selection.valid)
    return {at: set(indices[at][valid[at]].tolist()) for at in np.ndindex(valid.shape[:-1])}


def test_top_k_takes_the_largest_and_never_minus_infinity():
    scores = jnp.array([[[[1.0, 5.0, -jnp.inf, 3.0]], [[-jnp.inf, 2.0, -jnp.inf, jnp.inf]]]])
    assert list(sets(select.top_k(scores, 3, block_k=4)).values()) == [{0, 1, 3}, {1, 3}]


def test_top_p_is_the_smallest_set_that_reaches_the_share():
    mass = jax.nn.softmax(2 * draw(B, 5, 2, 7, seed=3))
    for at, chosen in sets(select.top_p(mass, 0.8, block_k=4)).items():
        row = np.asarray(mass[at])
        assert row[list(chosen)].sum() >= 0.8 - 1e-6
        assert row[list(chosen)].sum() - row[list(chosen)].min() < 0.8
        assert min(row[list(chosen)]) >= max([row[j] for j in range(7) if j not in chosen] + [0])
    assert all(len(x) == 7 for x in sets(select.top_p(mass, 1.0, block_k=4)).values())
    assert all(len(x) <= 2 for x in sets(select.top_p(mass, 0.99, most=2, block_k=4)).values())
    always = select.top_p(mass.at[..., 3].set(jnp.inf), 0.1, block_k=4)
    assert all(3 in x for x in sets(always).values())


def test_top_p_of_head_spends_the_share_of_the_whole_head():
    mass = jax.nn.softmax(3 * draw(B, 5, 2, 7, seed=4)) * jnp.arange(1.0, 6.0)[:, None, None]
    chosen = sets(select.top_p_of_head(mass, 0.7, block_k=4))
    for b, x in np.ndindex(B, 2):
        head = np.asarray(mass[b, :, x])
        kept = np.array([[j in chosen[b, u, x] for j in range(7)] for u in range(5)])
        assert head[kept].sum() >= 0.7 * head.sum() - 1e-5
        assert head[kept].sum() - head[kept].min() < 0.7 * head.sum()
        assert head[kept].min() >= head[~kept].max()
    counts = {len(x) for x in chosen.values()}
    assert len(counts) > 1  # rows get what they deserve
    assert all(len(x) == 7 for x in sets(select.top_p_of_head(mass, 1.0, block_k=4)).values())


def test_threshold_keeps_what_reaches_it():
    scores = draw(B, 3, 1, 6, seed=5)
    for at, chosen in sets(select.threshold(scores, 0.3, block_k=4)).items():
        assert chosen == {j for j in range(6) if scores[at][j] >= 0.3}


def test_causal_scores_settle_own_and_later_blocks():
    scores = jnp.ones((1, 5, 1, 4))
    # query blocks 0-2, 3-5, 6-8, ... and key blocks 0-3, 4-7, 8-11, ...
    got = np.asarray(select.causal_scores(scores, 3, 4))[0, :, 0]
    i = np.inf
    want = [[i, -i, -i, -i], [i, i, -i, -i], [1, i, i, -i], [1, 1, i, -i], [1, 1, 1, i]]
    assert np.array_equal(got, want)


def test_scores_of_blocks():
    q, k, _ = qkv()
    means = select.mean_pool(k, 4)
    close(means[:, 2], k[:, 8:].mean(1), 1e-6)  # the last block has three tokens
    scores = select.dot_scores(q, means)
    close(scores[1, 6, 3, 1], q[1, 6, 3] @ k[1, 4:8, 1].mean(0), 1e-5)
    close(select.over_group(scores, 2)[1, 6, 1], scores[1, 6, 2] + scores[1, 6, 3], 1e-6)


def test_clusters_and_buckets_are_tokens_in_another_order():
    scores = draw(B, N, 3, T, seed=6)
    members = np.asarray(select.clusters(scores, 4))
    for b, x, c in np.ndindex(B, N, 3):
        best = np.sort(np.argsort(-np.asarray(scores[b, x, c]))[:4])
        assert np.array_equal(members[b, 4 * c : 4 * c + 4, x], best)
    codes = jnp.asarray(np.random.default_rng(1).integers(0, 3, (B, T, K)))
    order = select.bucket_order(codes)
    sorted_codes = np.take_along_axis(np.asarray(codes), np.asarray(order), 1)
    assert (np.diff(sorted_codes, axis=1) >= 0).all()
    x = draw(B, T, N, H, seed=2)
    taken = select.take_tokens(x, order)
    assert np.array_equal(taken[1, 4, 3], x[1, order[1, 4, 1], 3])


# ------------------------------------------------------------------------- states that merge


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.softmax, normalizers.softmax_sink(np.arange(4.0)), normalizers.softpick(),
     normalizers.sigmoid(-2.0)],
    ids=lambda n: n.name,
)  # fmt: skip
def test_states_of_parts_join_to_the_whole(normalizer):
    """In value and gradient, through both forms of execution, in any order."""

    def joined(q, k, v):
        run = functools.partial(attend_state, q, normalizer=normalizer)
        a = run(k[:, :4], v[:, :4], impl="dense")
        b = run(k[:, 4:5], v[:, 4:5], impl=Blockwise(4, 3))
        c = run(k[:, 5:], v[:, 5:], impl=Blockwise(5, 2))
        return join_states(c, a, b, normalizer=normalizer)

    whole = lambda q, k, v: attend(q, k, v, normalizer=normalizer, impl="dense")
    with jax.enable_x64():
        args = [x.astype(jnp.float64) for x in qkv()]
        close(value_and_pull(joined)(*args), value_and_pull(whole)(*args))


def test_states_of_selected_blocks_join_too():
    q, k, v = qkv()
    run = lambda blocks: attend_state(q, k, v, blocks=blocks)
    every = select.every_block(B, T, S, block_k=4)
    first = replace(every, valid=every.valid & (every.indices == 1))
    rest = replace(every, valid=every.valid & (every.indices != 1))
    close(join_states(run(first), run(rest)), attend(q, k, v), 2e-6)


def test_a_state_comes_from_an_implementation_that_has_one():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="impl is 'cudnn', expected None.*'dense', 'blockwise'"):
        attend_state(q, k, v, impl="cudnn")
    with pytest.raises(TypeError, match="expected one with a method state"):
        attend_state(q, k, v, impl=CuDNN("xla"))


def test_only_one_pass_normalizers_join():
    q, k, v = qkv()
    state = attend_state(q, k, v, normalizer=normalizers.entmax(1.5))
    with pytest.raises(ValueError, match="expected a one-pass normalizer"):
        join_states(state, state, normalizer=normalizers.entmax(1.5))


# -------------------------------------------------------------------------- groups of keys


def grouped(s, allowed, q_pos, k_pos):
    """Keys of earlier groups share the weight of one key of score zero."""
    return jnp.where(k_pos // 3 < q_pos // 3, s - mods.log_sum_exp(s, allowed, 3), s)


@pytest.mark.parametrize("impl", ["dense", Blockwise(4, 2), Blockwise(5, 7)], ids=str)
def test_a_mod_may_look_at_a_group_of_keys(impl):
    """Against loops; the last group is not whole, and a mask takes keys out of groups."""
    q, k, v = draw(B, T, N, H, seed=0), draw(B, T, K, H, seed=1), draw(B, T, K, D, seed=2)
    keep = np.random.default_rng(1).random((T, T)) < 0.8
    mask = masks.causal & masks.array(keep)
    mod = mods.mod(grouped, positions=True, group=3)
    run = lambda q, k, v: attend(q, k, v, mods=(mod,), mask=mask, impl=impl)
    with jax.enable_x64():
        wide = [x.astype(jnp.float64) for x in (q, k, v)]
        out, *grads = value_and_pull(run)(*wide)
        q, k, v = map(np.asarray, wide)
        for b, n, i in ((0, 0, 12), (1, 3, 7), (1, 1, 4)):
            weight = np.zeros(T)
            for g in range(i // 3 + 1):
                js = [j for j in range(3 * g, min(3 * g + 3, i + 1)) if keep[i, j]]
                e = np.exp([q[b, i, n] @ k[b, j, n // 2] / np.sqrt(H) for j in js])
                weight[js] = e if g == i // 3 else e / e.sum()
            if weight.any():
                close(out[b, i, n], weight / weight.sum() @ v[b, :, n // 2])
        if impl != "dense":
            dense = lambda q, k, v: attend(q, k, v, mods=(mod,), mask=mask, impl="dense")
            close([out, *grads], list(value_and_pull(dense)(*wide)))


def test_a_group_must_fit_the_selected_blocks():
    q, k, v = qkv()
    mod = mods.mod(grouped, positions=True, group=3)
    with pytest.raises(ValueError, match="block_k is 4, expected a multiple of the mods' group 3"):
        attend(q, k, v, blocks=some_blocks(1, 1, 4, 2), mods=(mod,))
    with pytest.raises(ValueError, match="group is 0"):
        mods.mod(grouped, group=0)


# ------------------------------------------------------------------------ what is recalled


def test_maps_pooled_to_blocks_are_those_of_the_dense_map():
    q, k, _ = qkv()
    options = {"mods": (mods.soft_cap(2.0),), "mask": masks.causal}
    w = np.zeros((B, N, 15, 12))
    w[:, :, :T, :S] = attention_weights(q, k, **options)
    blocks = w.reshape(B, N, 5, 3, 3, 4).transpose(0, 2, 1, 4, 3, 5)
    close(block_mass(q, k, 3, 4, **options), blocks.sum((-1, -2)), 1e-6)
    close(block_peak(q, k, 3, 4, **options), blocks.max((-1, -2)), 1e-6)


def test_recall_is_the_share_of_weights_in_the_selected_blocks():
    q, k, _ = qkv()
    chosen = some_blocks(2, 3, 4, 2)
    w = np.asarray(attention_weights(q, k, mask=masks.causal))
    want = (w * as_array(chosen)).sum(-1).transpose(0, 2, 1)
    close(selection_recall(q, k, chosen, mask=masks.causal), want, 1e-6)
    nobody = masks.array(np.zeros((T, S), bool))
    assert (selection_recall(q, k, chosen, mask=nobody) == 1).all()


def test_no_selection_recalls_more_than_the_oracle():
    q, k, _ = qkv()
    sizes = {"block_q": 3, "block_k": 4}
    recall = lambda chosen: selection_recall(q, k, chosen, mask=masks.causal)
    by_block = lambda x: jnp.stack([x[:, u * 3 : u * 3 + 3].sum(1) for u in range(5)])
    best = by_block(recall(best_selection(q, k, 2, mask=masks.causal, **sizes)))
    for seed in range(4):
        chosen = select.top_k(draw(B, 5, N, 3, seed=seed), 2, **sizes)
        assert (by_block(recall(chosen)) <= best + 1e-5).all()
