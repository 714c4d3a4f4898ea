"""Attention to selected blocks: what is attended to, that only that is worked on, bad input."""

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
from attnjax.core.pairwise import blockwise
from tests.core.blocks.inputs import B, D, H, K, N, S, T, as_array, qkv, some_blocks
from tests.helpers import close, draw, value_and_pull

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
    want = jax.jit(lambda q, k, v: attend(q, k, v, mask=masks.causal))(q, k, v)
    for block_q, block_k in ((1, 4), (5, 3), (T, S)):
        chosen = select.every_block(B, T, S, block_q=block_q, block_k=block_k)
        run = lambda q, k, v, blocks=chosen: attend(
            q, k, v, blocks=blocks, mask=masks.causal, impl=impl
        )
        close(jax.jit(run)(q, k, v), want, 2e-6)


@pytest.mark.parametrize("impl", ["dense", Blockwise(4)], ids=["dense", "tiles"])
def test_tokens_in_an_order_of_each_head_keep_their_positions(impl):
    """Queries and keys shuffled by head, all blocks selected: causal attention, shuffled."""
    q, k, v = draw(B, T, N, H, seed=0), draw(B, T, K, H, seed=1), draw(B, T, K, D, seed=2)
    order = select.bucket_order(jnp.asarray(np.random.default_rng(5).integers(0, 3, (B, T, K))))
    places = {"q_positions": order, "k_positions": order}
    chosen = jax.tree.map(lambda x: jnp.repeat(x, K, 2), select.every_block(B, T, T, block_k=5))

    @jax.jit
    def run(q, k, v):
        shuffled = (select.take_tokens(x, order) for x in (q, k, v))
        out = attend(*shuffled, blocks=chosen, mask=masks.causal, impl=impl, **places)
        return out, select.take_tokens(attend(q, k, v, mask=masks.causal), order)

    close(*run(q, k, v), 2e-6)


def test_forward_mode():
    chosen = some_blocks(4, 1, 4, 2)

    def run(impl):
        f = lambda q, k, v: attend(q, k, v, blocks=chosen, mask=masks.causal, impl=impl)
        return jax.jit(lambda x, dx: jax.jvp(f, x, dx))(qkv(), qkv(3))

    close(run(Blockwise(4)), run("dense"), 2e-5)


def test_a_nan_reaches_exactly_the_rows_that_see_it():
    q, k, v = qkv()
    chosen = some_blocks(2, 3, 4, 1)
    spoiled = k.at[0, 9, 1].set(jnp.nan)
    run = jax.jit(lambda k, impl: attend(q, k, v, blocks=chosen, impl=impl), static_argnames="impl")
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


def scores_formed(chosen, length, backward):
    """How many scores are looked at when the program runs, counted by a mod."""
    seen = []

    def counted(score):
        jax.debug.callback(lambda: seen.append(score.shape))
        return score

    x = draw(1, length, 1, 4, seed=0)

    @jax.jit
    def run(q, blocks):
        f = lambda q: attend(
            q, x, x, blocks=blocks, mods=(mods.mod(counted),), impl=Blockwise(16)
        ).sum()
        return (jax.grad(f) if backward else f)(q)

    jax.block_until_ready(run(x, chosen))
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


def test_states_of_selected_blocks_join_too():
    q, k, v = qkv()
    run = jax.jit(lambda blocks: attend_state(q, k, v, blocks=blocks))
    every = select.every_block(B, T, S, block_k=4)
    first = replace(every, valid=every.valid & (every.indices == 1))
    rest = replace(every, valid=every.valid & (every.indices != 1))
    close(join_states(run(first), run(rest)), attend(q, k, v), 2e-6)
