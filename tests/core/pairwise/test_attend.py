"""Engine 1: mods, positions, the drop-in for jax.nn, explain, and what bad input is told."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax import (
    Blockwise,
    attend,
    attention_scores,
    attention_weights,
    dot_product_attention,
    explain,
    masks,
    mods,
    normalizers,
    select,
)
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import project
from attnjax.core.pairwise.cudnn import CuDNN
from attnjax.core.pairwise.triton import Triton
from tests import helpers
from tests.helpers import draw, draws

B, T, S, N, K, H, D = 2, 9, 11, 4, 2, 8, 6


def qkv(T=T, S=S, seed=0, D=D):
    return helpers.qkv(B, T, N, H, S=S, K=K, D=D, seed=seed)


close = functools.partial(helpers.near, tolerance=2e-6)


# ----------------------------------------------------------------------------------- mods


def np_scores(q, k):
    q, k = np.float64(q), np.float64(k)
    return np.einsum("btnh,bsnh->bnts", q, np.repeat(k, N // K, 2)) / np.sqrt(H)


def np_attend(s, v):
    e = np.exp(s - s.max(-1, keepdims=True))
    w = e / e.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnd->btnd", w, np.repeat(np.float64(v), N // K, 2))


def np_distance(radius, q_pos=None, k_pos=None):
    q_pos = np.arange(T) if q_pos is None else q_pos
    k_pos = np.arange(S) if k_pos is None else k_pos
    return radius + np.clip(k_pos[None] - q_pos[:, None], -radius, radius)


def mod_cases():
    """name -> (mod, NumPy: scores -> scores, given the (T,S) index into tables of radius 2)."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    table, head_table, q_table, k_table = draw(5), draw(N, 5), draw(B, T, N, 5), draw(B, S, K, 5)
    slopes, bias, per_q, per_k = draw(N), draw(1, N, T, 1), draw(B, T, N), draw(B, S, K)
    a, b, w = draw(B, T, N, 3), draw(B, S, K, 3), draw(N, 3)
    heads = lambda x: np.repeat(x, N // K, 2).transpose(0, 2, *range(1, 2), *range(3, x.ndim))
    rows, columns = np.arange(T)[:, None], np.arange(S)[None]
    custom = mods.mod(
        lambda s, x, y, z: s * jnp.tanh(x) + y * z, query=per_q, key=per_k, head=slopes
    )
    return {
        "alibi": (
            mods.alibi(slopes),
            lambda s, at: s - slopes[:, None, None] * np.abs(rows - columns),
        ),
        "soft_cap": (mods.soft_cap(0.8), lambda s, at: 0.8 * np.tanh(s / 0.8)),
        "relative_bias": (mods.relative_bias(table), lambda s, at: s + table[at]),
        "relative_bias per head": (
            mods.relative_bias(head_table),
            lambda s, at: s + head_table[:, at],
        ),
        "pair_bias": (mods.pair_bias(bias), lambda s, at: s + bias),
        "per_head_scale": (mods.per_head_scale(slopes), lambda s, at: s * slopes[:, None, None]),
        "query_relative": (
            mods.query_relative(q_table),
            lambda s, at: s + q_table.transpose(0, 2, 1, 3)[:, :, rows, at],
        ),
        "key_relative": (
            mods.key_relative(k_table),
            lambda s, at: s + heads(k_table)[:, :, columns, at],
        ),
        "additive": (
            mods.additive(a, b, w),
            lambda s, at: np.einsum(
                "nr,bntsr->bnts",
                w,
                np.tanh(a.transpose(0, 2, 1, 3)[:, :, :, None] + heads(b)[:, :, None]),
            ),
        ),
        "custom": (
            custom,
            lambda s, at: (
                s * np.tanh(per_q.transpose(0, 2, 1)[..., None])
                + heads(per_k)[:, :, None] * slopes[:, None, None]
            ),
        ),
    }


MODS = mod_cases()


@pytest.mark.parametrize("name", MODS)
@pytest.mark.parametrize("impl", ["dense", Blockwise(4, 3)], ids=["dense", "blockwise"])
def test_mods_do_what_they_say(name, impl):
    q, k, v = qkv()
    mod, truth = MODS[name]
    want = np_attend(truth(np_scores(q, k), np_distance(2)), v)
    close(attend(q, k, v, mods=(mod,), impl=impl), want)


@pytest.mark.parametrize("impl", ["dense", Blockwise(4, 3)], ids=["dense", "blockwise"])
@pytest.mark.parametrize("name", ["relative_bias per head", "query_relative", "key_relative"])
def test_tables_follow_explicit_positions(name, impl):
    q, k, v = qkv()
    rng = np.random.default_rng(3)
    q_pos, k_pos = rng.permutation(20)[:T], rng.permutation(20)[:S]
    mod, truth = MODS[name]
    want = np_attend(truth(np_scores(q, k), np_distance(2, q_pos, k_pos)), v)
    got = attend(q, k, v, mods=(mod,), q_positions=q_pos, k_positions=k_pos, impl=impl)
    close(got, want)


def test_permuted_tokens_with_their_positions_give_the_permuted_result_and_gradient():
    """Everything that depends on position at once: mask, tables, relative values, alibi."""
    q, k, v = qkv(T=T, S=T)
    (table, values), order = draws((N, 5), (5, D), seed=4), np.random.default_rng(1).permutation(T)
    terms = (mods.alibi(mods.alibi_slopes(N)), mods.relative_bias(table))
    mask = masks.causal & masks.window(5)

    def loss(inputs, positions, impl):
        q, k, v, values = inputs
        out = attend(
            q, k, mods.relative_values(v, values), mods=terms, mask=mask,
            q_positions=positions, k_positions=positions, impl=impl,
        )  # fmt: skip
        return jnp.sum(jnp.sin(out)), out

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    want_grads, want = run((q, k, v, values), None, "dense")
    moved = tuple(x[:, order] for x in (q, k, v))
    for impl in ("dense", Blockwise(4, 3)):
        grads, got = run((*moved, values), jnp.asarray(order), impl)
        close(got, want[:, order])
        for g, w in zip(grads[:3], want_grads[:3], strict=True):
            close(g, w[:, order])
        close(grads[3], want_grads[3], tolerance=1e-5)


def test_t5_buckets_are_those_of_the_paper():
    """Exact distances below half of the buckets, then logarithmic, the last bucket for the rest."""
    at = mods.t5_buckets(32, bidirectional=True, max_distance=128)
    distance = np.arange(-128, 129)
    bucket = dict(zip(distance, at, strict=True))
    assert [bucket[-d] for d in range(8)] == list(range(8))
    assert [bucket[d] for d in range(1, 8)] == list(range(17, 24))
    assert bucket[-8] == 8 and bucket[-12] == 9 and bucket[-64] == 14 and bucket[-128] == 15
    assert bucket[128] == 31 and (np.diff(at[:129]) <= 0).all()
    one_way = mods.t5_buckets(32, bidirectional=False, max_distance=128)
    assert (one_way[129:] == 0).all() and one_way[128 - 15] == 15 and one_way[0] == 31


def test_mods_apply_in_order():
    q, k, v = qkv()
    cap, bias = mods.soft_cap(0.5), mods.pair_bias(5.0 * draw(N, T, S))
    s = np_scores(q, k)
    b = np.float64(bias.operands[0])
    close(
        attend(q, k, v, mods=(cap, bias)), np_attend(0.5 * np.tanh(s / 0.5) + b, v), tolerance=1e-5
    )
    close(
        attend(q, k, v, mods=(bias, cap)),
        np_attend(0.5 * np.tanh((s + b) / 0.5), v),
        tolerance=1e-5,
    )


# ------------------------------------------------------------------- all together, at random


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_composition_runs_the_same_on_dense_and_blockwise(data):
    """Value and every gradient, in float64, of random mods, mask, normalizer, shape and tiles."""
    with jax.enable_x64():
        T, S = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))
        K, G, D = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2)), 3
        N, f64 = K * G, jnp.float64
        q, k, v, table, bias, head = draws(
            (2, T, N, 4), (2, S, K, 4), (2, S, K, D), (N, 5), (1, N, 1, S), (N,), dtype=f64
        )
        pool = [
            masks.causal, masks.causal_to_end, masks.window(3, 1), masks.sinks(2),
            masks.dilated(3, 2), masks.lengths(k=np.array([S, max(1, S // 2)])),
            masks.array(np.random.default_rng(0).random((1, N, T, S)) < 0.5),
        ]  # fmt: skip
        chosen = data.draw(st.lists(st.sampled_from(range(len(pool))), max_size=2))
        mask = masks.everything
        for i in chosen:
            both = data.draw(st.booleans())
            mask = mask & pool[i] if both else mask | ~pool[i]
        names = ["softmax", "softpick", "signed", "sigmoid", "softplus", "clipped", "sink"]
        normalizer = {
            "softmax": normalizers.softmax,
            "softpick": normalizers.softpick(),
            "signed": normalizers.signed,
            "sigmoid": normalizers.sigmoid(-1.0),
            "softplus": normalizers.softplus(2, 0.3),
            "clipped": normalizers.clipped_softmax(-0.05, 1.05),
            "sink": normalizers.softmax_sink(head),
        }[data.draw(st.sampled_from(names))]
        terms = {
            0: mods.soft_cap(3.0), 1: mods.relative_bias(table), 2: mods.pair_bias(bias),
            3: mods.alibi(head),
        }  # fmt: skip
        picked = tuple(terms[i] for i in data.draw(st.lists(st.sampled_from(range(4)), max_size=3)))
        tiles = Blockwise(data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))

        @functools.partial(jax.jit, static_argnums=0)
        def value_and_grads(impl, *args):
            f = lambda q, k, v, m, n: attend(q, k, v, mods=m, mask=mask, normalizer=n, impl=impl)
            out, pull = jax.vjp(f, *args)
            return out, pull(jnp.cos(out))

        args = (q, k, v, picked, normalizer)
        want, got = value_and_grads("dense", *args), value_and_grads(tiles, *args)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), got, want)


def test_a_traced_document_mask_skips_at_run_time_and_stays_right():
    q, k, v = qkv(S=T)
    ids = jnp.array([0, 0, 0, 0, 1, 1, 1, 2, 2])

    def run(impl):
        f = lambda q, ids: attend(q, k, v, mask=masks.causal & masks.document(ids), impl=impl)
        grad = jax.grad(lambda q, ids: jnp.sum(jnp.sin(f(q, ids))))
        return jax.jit(lambda q, ids: (f(q, ids), grad(q, ids)))(q, ids)

    jax.tree.map(close, run(Blockwise(2, 2)), run("dense"))


def test_a_bad_key_spoils_exactly_the_rows_that_see_it():
    q, k, v = qkv(S=T)
    for name, bad in {
        "v": (q, k, v.at[1, 5, 0, 2].set(jnp.inf)),
        "k": (q, k.at[1, 5, 0, 2].set(jnp.nan), v),
    }.items():
        for impl in ("dense", Blockwise(4, 3), Blockwise(2, 2)):
            out = np.asarray(attend(*bad, mask=masks.causal, impl=impl))
            seen = np.zeros(out.shape[:3], bool)
            seen[1, 5:, :2] = True
            assert np.isnan(out[seen]).all() and np.isfinite(out[~seen]).all(), (name, impl)


@pytest.mark.parametrize("impl", ["dense", Blockwise(4, 3)], ids=["dense", "blockwise"])
@pytest.mark.parametrize("X", [None, 1, 2, 8])
def test_values_with_more_heads_than_keys_are_repeated_keys(impl, X):
    """In value and gradient, with operands, a bad key and a selection of each kind of heads."""
    q, k, v, key = draws((B, T, 8, H), (B, S, 2, H), (B, S, 4, D), (B, S, 2), seed=9)
    v = v.at[1, 7, 3].set(jnp.nan)  # of query heads 6 and 7
    blocks = None
    if X is not None:
        (scores,) = draws((B, 3, X, 3), seed=10)
        blocks = select.top_k(scores, 2, block_q=3, block_k=4)
    repeated = lambda x: jnp.repeat(x, 4, axis=2)

    @functools.partial(jax.jit, static_argnums=0)
    def run(spread, q, k, v, key):
        def f(q, k, v, key):
            chosen = blocks
            if spread:
                k, v, key = repeated(k), jnp.repeat(v, 2, axis=2), repeated(key)
                chosen = jax.tree.map(repeated, blocks) if X == 2 else blocks
            terms = {"mods": (mods.mod(jnp.add, key=key),), "mask": masks.causal_to_end}
            return attend(q, k, v, blocks=chosen, impl=impl, **terms)

        out, pull = jax.vjp(f, q, k, v, key)
        return out, pull(jnp.where(jnp.isnan(out), 0.0, jnp.sin(out)))

    got, want = run(False, q, k, v, key), run(True, q, k, v, key)
    nans = functools.partial(jax.tree.map, np.isnan)
    chex.assert_trees_all_equal(nans(got), nans(want))
    close(*(jax.tree.map(np.nan_to_num, x) for x in (got, want)))
    nan = np.isnan(got[0]).any((0, 1, 3))
    assert not nan[:6].any() and (X is not None or nan[6:].all())


def test_attention_weights_are_those_attend_applies():
    q, k, v = qkv()
    w = attention_weights(q, k, mask=masks.causal_to_end, normalizer=normalizers.softpick())
    out = np.einsum("bnts,bsnd->btnd", w, np.repeat(v, N // K, 2))
    close(attend(q, k, v, mask=masks.causal_to_end, normalizer=normalizers.softpick()), out)


def operands_with_a_nan():
    """name -> (mods of the operand, the operand, where its NaN is, which rows (B,N,T) see it)."""
    every, rows, keys = np.zeros((3, B, N, T), bool)
    rows[1, 2, 4] = True  # query 4 of head 2
    keys[1, 2:, 3:] = True  # key 3 of key head 1, to queries that see it
    every[:, :, 4] = True
    per_query, per_key, shared = draws((B, T, N), (B, S, K), (T,), seed=5)
    q_table, k_table = draws((B, T, N, 5), (B, S, K, 5), seed=6)
    q_rows, k_rows, w = draws((B, T, N, 3), (B, S, K, 3), (N, 3), seed=7)
    times = lambda score, x: score * x
    return {
        "query": (lambda x: mods.mod(times, query=x), per_query, (1, 4, 2), rows),
        "query of all": (lambda x: mods.mod(times, query=x), shared, (4,), every),
        "key": (lambda x: mods.mod(times, key=x), per_key, (1, 3, 1), keys),
        "query table": (mods.query_relative, q_table, (1, 4, 2, 0), rows),
        "key table": (mods.key_relative, k_table, (1, 3, 1, 0), keys),
        "query features": (lambda x: mods.additive(x, k_rows, w), q_rows, (1, 4, 2, 1), rows),
        "key features": (lambda x: mods.additive(q_rows, x, w), k_rows, (1, 3, 1, 1), keys),
    }


@pytest.mark.parametrize("name", operands_with_a_nan())
@pytest.mark.parametrize("impl", ["dense", Blockwise(4, 3)], ids=["dense", "blockwise"])
def test_a_nan_in_an_operand_reaches_exactly_the_rows_that_see_it(name, impl):
    """And where a mask hides it, no gradient of anything is NaN."""
    make, x, where, seen = operands_with_a_nan()[name]
    bad = x.at[where].set(jnp.nan)

    @jax.jit
    def both(q, k, v, x, hidden):
        ok = masks.causal & masks.array(~hidden)
        run = lambda *x: attend(*x[:3], mods=(make(x[3]),), mask=ok, impl=impl)
        out, pull = jax.vjp(run, q, k, v, x)
        return out, pull(jnp.ones_like(out))

    out, grads = both(*qkv(), bad, np.zeros((1, 1, T, S), bool))
    want, _ = both(*qkv(), x, np.zeros((1, 1, T, S), bool))
    seen = seen.swapaxes(1, 2)
    assert np.array_equal(np.isnan(out).all(-1), seen) and np.array_equal(
        np.isnan(out).any(-1), seen
    )
    close(np.asarray(out)[~seen], np.asarray(want)[~seen])
    others = ~seen[..., None] & np.ones((B, T, N, H), bool)
    assert np.isfinite(np.asarray(grads[0])[others]).all()

    hidden = np.zeros((1, 1, T, S), bool)
    hidden[:, :, 4] |= "query" in name
    hidden[..., 3] |= "key" in name
    got, want = both(*qkv(), bad, hidden), both(*qkv(), x.at[where].set(0.0), hidden)
    jax.tree.map(close, got, want)


def test_a_nan_of_a_projected_row_stays_its_own():
    x, w = draws((3, 4), (4, 2))
    bad = x.at[1, 2].set(jnp.inf)
    out, pull = jax.vjp(project, bad, w)
    assert np.isnan(out[1]).all() and np.array_equal(out[::2], project(x, w)[::2])
    masked = pull(jnp.ones_like(out).at[1].set(0.0))
    jax.tree.map(close, masked, (jnp.where(jnp.arange(3)[:, None] != 1, w.sum(1), 0.0),
                                 jnp.broadcast_to((x[0] + x[2])[:, None], w.shape)))  # fmt: skip


# -------------------------------------------------------------------------- jax.nn's drop-in


def jax_nn_cases():
    q, k, v = qkv(D=H)
    bias, mask = draw(1, N, T, S), np.random.default_rng(0).random((B, 1, T, S)) < 0.7
    mask[..., 0] = True  # jax.nn gives rows without keys the mean of v, attnjax gives zeros
    lengths = jnp.array([S, 6], jnp.int32)
    return {
        "plain": ((q, k, v), {}),
        "bias": ((q, k, v, bias), {}),
        "mask": ((q, k, v, None, mask), {}),
        "mask by key": ((q, k, v, bias, mask[:, :, :1]), {"scale": 0.3}),
        "causal": ((q, k, v), {"is_causal": True}),
        "key lengths": ((q, k, v), {"key_value_seq_lengths": lengths}),
        "window": ((q, k, v), {"local_window_size": 2}),
        "window, causal": ((q, k, v), {"local_window_size": (3, 1), "is_causal": True}),
        "no batch": ((q[0], k[0], v[0], bias[0]), {"is_causal": True}),
        "half": (tuple(x.astype(jnp.bfloat16) for x in (q, k, v)), {}),
    }


@pytest.mark.parametrize("case", jax_nn_cases())
@pytest.mark.parametrize("impl", [None, "blockwise", "xla"])
def test_dot_product_attention_is_a_drop_in_for_jax_nn(case, impl):
    args, options = jax_nn_cases()[case]
    want = jax.nn.dot_product_attention(*args, **options)
    got = dot_product_attention(*args, **options, implementation=impl)
    assert got.dtype == want.dtype and got.shape == want.shape
    tolerance = 2e-2 if case == "half" else 2e-6
    close(got.astype(jnp.float32), want.astype(jnp.float32), tolerance=tolerance)


@pytest.mark.parametrize("case", jax_nn_cases())
@pytest.mark.parametrize("impl", ["xla", "blockwise"])
def test_dot_product_attention_returns_the_residual_of_jax_nn(case, impl):
    args, options = jax_nn_cases()[case]
    options = {"return_residual": True, **options}
    want = jax.nn.dot_product_attention(*args, **options)
    got = dot_product_attention(*args, **options, implementation=impl)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in want]
    tolerance = 2e-2 if case == "half" else 2e-6
    for x, y in zip(got, want, strict=True):
        close(x.astype(jnp.float32), y.astype(jnp.float32), tolerance=tolerance)


def test_the_residual_of_rows_with_nothing_or_a_nan_and_its_gradient():
    q, k, v = qkv(D=H)
    lengths = {"query_seq_lengths": jnp.array([T, 4], jnp.int32), "return_residual": True}
    want = jax.nn.dot_product_attention(q, k, v, **lengths)
    got = dot_product_attention(q, k, v, **lengths)
    close(got, want)
    assert np.all(np.asarray(got[1])[1, 4:] == np.float32(-0.7 * np.finfo(np.float32).max))
    residual = lambda q: dot_product_attention(q, k, v, return_residual=True)[1].sum()
    assert not np.any(jax.grad(residual)(q))
    bad = residual(q.at[0, 0, 0, 0].set(jnp.nan))
    assert np.isnan(bad)


def test_dot_product_attention_names_the_implementations_of_jax_nn():
    q, k, v = qkv(D=H)
    with pytest.raises(ValueError, match="'cudnn' does not run this call: needs an NVIDIA GPU"):
        dot_product_attention(q, k, v, implementation="cudnn")
    told = lambda *x: str(explain(dot_product_attention, *x, implementation="xla"))
    assert "-> dense" in told(q, k, v)
    long = jnp.zeros((1, 300, 1, 8))
    assert "-> blockwise" in told(long, long, long)


def test_dot_product_attention_takes_a_mask_of_ours():
    q, k, v = qkv(D=H)
    got = dot_product_attention(q, k, v, mask=masks.window(2), is_causal=True)
    close(got, attend(q, k, v, mask=masks.window(2) & masks.causal))


def test_dot_product_attention_gives_zeros_for_rows_beyond_the_query_lengths():
    q, k, v = qkv(D=H)
    lengths = jnp.array([T, 4], jnp.int32)
    want = jax.nn.dot_product_attention(q, k, v, query_seq_lengths=lengths)
    got = dot_product_attention(q, k, v, query_seq_lengths=lengths)
    close(got, want)
    assert not np.any(got[1, 4:])


LIKE_CUDNN = CuDNN(inner="xla")  # the same arguments, only the executor is not cuDNN's


@pytest.mark.parametrize(
    ("mask", "T", "S"),
    [
        (masks.everything, 12, 8),
        (masks.causal, 8, 12),
        (masks.window(5), 12, 8),
        (masks.causal_to_end, 8, 8),
    ],
    ids=repr,
)
@pytest.mark.parametrize("bias", ["none", "rows without keys"])
def test_the_translation_to_cudnn_keeps_the_meaning(mask, T, S, bias):
    """Values and gradients, a NaN of q, k or v, biases of -inf, rows that may see nothing."""
    q, k, v = qkv(T, S, D=H)
    terms = ()
    if bias != "none":
        x = draw(1, N, T, S)
        if bias == "rows without keys":
            x = x.at[:, :, :, 1].set(-jnp.inf).at[:, 1, 3:5].set(-jnp.inf)
        terms = (mods.pair_bias(x),)
    weights = draw(B, T, N, H, seed=5)

    def run(impl, q, k, v):
        return attend(q, k, v, mods=terms, mask=mask, scale=0.4, impl=impl)

    def both(impl):
        return run(impl, q, k, v), jax.grad(
            lambda *x: jnp.sum(run(impl, *x) * weights), argnums=(0, 1, 2)
        )(q, k, v)

    close(both(LIKE_CUDNN), both("dense"))
    for bad in (
        (q.at[0, 3, 1, 2].set(jnp.nan), k, v),
        (q, k.at[0, 2, 1, 2].set(jnp.inf), v),
        (q, k, v.at[1, 5, 0, 2].set(jnp.nan)),
    ):
        got, want = (np.asarray(run(impl, *bad)) for impl in (LIKE_CUDNN, "dense"))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        assert np.isnan(want).any() and not np.isnan(want).all()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_cudnn_says_why_it_does_not_run():
    q, k, v = qkv(8, 8, D=H)
    with pytest.raises(ValueError, match="'cudnn' does not run this call: needs an NVIDIA GPU"):
        attend(q, k, v, impl="cudnn")
    for options, reason in (
        ({"normalizer": normalizers.softpick()}, "normalizer softpick: only softmax"),
        ({"mods": (mods.soft_cap(3.0),)}, "mods: only one pair_bias"),
        ({"mask": masks.sinks(2)}, "mask sinks"),
        ({"mask": masks.window(3, None)}, "only causal and window"),
        ({"mask": masks.window(None, 1)}, "only causal and window"),
        ({"q_positions": jnp.arange(8)}, "explicit positions"),
    ):
        with pytest.raises(ValueError, match=reason):
            attend(q, k, v, impl=LIKE_CUDNN, **options)
    for T, S, mask, reason in (
        (9, 8, masks.causal, "T = 9, S = 8: only even lengths"),
        (8, 11, masks.causal, "only even lengths"),
        (12, 8, masks.window(3), "queries that see no key"),
        (8, 6, masks.causal_to_end, "only causal and window"),
    ):
        with pytest.raises(ValueError, match=reason):
            attend(*qkv(T, S, D=H), mask=mask, impl=LIKE_CUDNN)


def test_cudnn_refuses_arrays_beyond_32_bits():
    q = jax.ShapeDtypeStruct((1, 2**20, 16, 128), jnp.bfloat16)
    run = lambda q: attend(q, q, q, mask=masks.causal, impl=LIKE_CUDNN)
    with pytest.raises(ValueError, match=r"2147483648 elements: only up to 2\^31 - 1"):
        jax.eval_shape(run, q)
    fits = jax.ShapeDtypeStruct((1, 2**20 - 2, 16, 128), jnp.bfloat16)
    assert jax.eval_shape(run, fits).shape == fits.shape


# ------------------------------------------------------------------------------------ explain


def test_explain_tells_what_runs_and_why_the_others_do_not():
    q, k, v = qkv()
    small = explain(attend, q, k, v, mask=masks.causal, mods=(mods.soft_cap(5.0),))
    [(headline, choices)] = small.calls
    assert "mask causal" in headline and "mods soft_cap" in headline
    by_name = {c.implementation: c for c in choices}
    assert by_name["dense"].runs and not by_name["blockwise"].runs
    assert "needs an NVIDIA GPU" in by_name["cudnn"].reason
    assert "-> dense" in str(small)
    big = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
    x = jnp.zeros(big.shape)
    [(_, choices)] = explain(attend, x, x, x).calls
    assert {c.implementation: c.runs for c in choices}["blockwise"]
    [(_, choices)] = explain(attend, q, k, v, impl=Blockwise(2, 2)).calls
    assert "runs: asked for" in {c.implementation: c.reason for c in choices}[repr(Blockwise(2, 2))]


# ---------------------------------------------------------------------------------- bad input


Q, K_, V_ = qkv()
ARGUMENTS = {  # what is wrong -> the arguments, the error and what it says
    "rank": ((Q[0], K_, V_), ValueError, "q has shape (9, 4, 8), expected rank 4, (B,T,N,H)"),
    "groups": (
        (Q[:, :, :3], K_, V_), ValueError, "q has N = 3 heads, expected a multiple of k's K = 2"
    ),
    "width": (
        (Q, K_[..., :7], V_), ValueError, "k has head width H = 7, expected q's H = 8"
    ),
    "length": ((Q, K_, V_[:, :10]), ValueError, "v has length S = 10, expected k's S = 11"),
    "value heads": (
        (Q, K_, V_[:, :, :1]),
        ValueError,
        "v has 1 heads, expected k's K = 2, or a multiple of K that divides N = 4",
    ),
    "batch": ((Q, K_[:1], V_), ValueError, "batch sizes B = 2, 1, 2, expected one"),
    "integers": (
        (Q, K_.astype(int), V_), TypeError, "k has dtype int32, expected a floating-point dtype"
    ),
    "mixed dtypes": (
        (Q, K_.astype(jnp.bfloat16), V_), TypeError,
        "dtypes float32, bfloat16, float32, expected one dtype",
    ),
    "no query": ((Q[:, :0], K_, V_), ValueError, "T = 0 and S = 11, expected both to be at least"),
    "no key": ((Q, K_[:, :0], V_[:, :0]), ValueError, "T = 9 and S = 0, expected both to be"),
}  # fmt: skip
OPTIONS = {  # what is wrong -> the options, the error and what it says
    "positions' length": (
        {"q_positions": jnp.arange(8)}, ValueError,
        "q_positions has shape (8,), expected (T,) = (9,) or (B,T) = (2, 9)",
    ),
    "positions' dtype": (
        {"k_positions": jnp.zeros(S)}, TypeError, "k_positions has dtype float32, expected integers"
    ),
    "mask of arrays": (
        {"mask": np.ones((T, S), bool)}, TypeError,
        "mask is ndarray, expected a Mask; no mask is masks.everything, an array is masks.array(x)",
    ),
    "no mask": ({"mask": None}, TypeError, "mask is None, expected a Mask; no mask is masks.every"),
    "mask's shape": (
        {"mask": masks.array(np.ones((T, S + 1), bool))}, ValueError, "(9, 12)"
    ),
    "a function for a mod": (
        {"mods": (lambda s: s,)}, TypeError, "mods[0] is function, expected a Mod"
    ),
    "normalizer by name": (
        {"normalizer": "softmax"}, TypeError, "normalizer is 'softmax', expected a Normalizer"
    ),
    "unknown impl": (
        {"impl": "blokwise"}, ValueError,
        "impl is 'blokwise', expected None, an Implementation or one of 'dense', 'blockwise', "
        "'cudnn', 'triton'; did you mean 'blockwise'?",
    ),
    "no impl": ({"impl": 3}, TypeError, "impl is 3, expected None, a name or an object"),
    "head operand": (
        {"mods": (mods.alibi(jnp.zeros(3)),)}, ValueError,
        "a head operand has shape (3,), expected () = () or (N) = (4,)",
    ),
    "query operand": (
        {"mods": (mods.mod(jnp.add, query=jnp.zeros((2, 8, 4))),)}, ValueError,
        "a query operand has shape (2, 8, 4), expected (T) = (9,) or (B,T,N) = (2, 9, 4)",
    ),
    "pair operand": (
        {"mods": (mods.pair_bias(jnp.zeros((3, 9, 11))),)}, ValueError,
        "a pair operand has shape (3, 9, 11), expected one broadcastable to (B,N,T,S) = "
        "(2, 4, 9, 11)",
    ),
}  # fmt: skip
BAD = {name: (args, {}, *rest) for name, (args, *rest) in ARGUMENTS.items()}
BAD |= {name: ((Q, K_, V_), options, *rest) for name, (options, *rest) in OPTIONS.items()}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_what_was_given_and_expected(name):
    args, options, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)) as caught:
        attend(*args, **options)
    assert "\n" not in str(caught.value)


def test_a_mod_that_closes_over_a_traced_array_is_refused():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="closes over a traced array float32"):
        jax.jit(lambda c: attend(q, k, v, mods=(mods.mod(lambda s: s + c),)))(jnp.float32(1))


def test_tables_have_an_odd_number_of_entries():
    with pytest.raises(ValueError, match="table has 4 entries, expected an odd number"):
        mods.relative_bias(jnp.zeros(4))
    with pytest.raises(ValueError, match="expected \\(R,D\\) with odd R"):
        mods.relative_values(jnp.zeros((1, 3, 1, 2)), jnp.zeros((4, 2)))


@pytest.mark.parametrize("options", [{"block_q": 0}, {"block_k": 1.5}])
def test_blockwise_refuses_nonsense(options):
    with pytest.raises(ValueError, match="Blockwise: .* expected"):
        Blockwise(**options)


# ------------------------------------------------------------------ positions of each example

OWN = {
    "q_positions": np.array([np.arange(T), np.arange(T) + 2]),
    "k_positions": np.array([np.arange(S)[::-1], np.random.default_rng(3).permutation(S)]),
}


def by_positions():
    """Each kind of what depends on positions, as arguments for the examples [first, last)."""
    ends, table, slopes = np.array([4, 9]), draw(N, 7), draw(N)
    relative, values = draw(B, T, N, 5), draw(5, D)
    return {
        "causal": lambda of: {"mask": masks.causal},
        "window, alibi": lambda of: {
            "mask": masks.window(4, 2) | masks.sinks(1), "mods": (mods.alibi(slopes),)
        },
        "lengths": lambda of: {"mask": masks.causal & masks.prefix(ends[of])},
        "table": lambda of: {
            "mods": (mods.relative_bias(table),), "normalizer": normalizers.softpick()
        },
        "query table": lambda of: {
            "mods": (mods.query_relative(relative[of]),), "mask": masks.fn(_third)
        },
        "two passes": lambda of: {
            "normalizer": normalizers.clipped_softmax(-0.1, 1.1), "mask": ~masks.window(1)
        },
        "values": lambda of: {"mask": masks.causal, "table": values},
    }  # fmt: skip


def _third(q_pos, k_pos):
    return (q_pos + k_pos) % 3 > 0


def attend_at(q, k, v, *, table=None, **terms):
    return attend(q, k, v if table is None else mods.relative_values(v, table), **terms)


@pytest.mark.parametrize(
    "kind, sides",
    [("causal", "q_positions"), ("causal", "k_positions"), *((x, "both") for x in by_positions())],
)
@pytest.mark.parametrize(
    "impl",
    [pytest.param("dense", marks=pytest.mark.slow), Blockwise(block_q=4, block_k=3)],
    ids=str,
)
def test_positions_of_each_example_equal_a_call_for_each(kind, impl, sides):
    terms = by_positions()[kind]
    places = {name: x for name, x in OWN.items() if sides in ("both", name)}
    qkv_, weights = qkv(), draw(B, T, N, D, seed=9)

    def loss(args, of, positions):
        out = attend_at(*(x[of] for x in args), **terms(of), **positions, impl=impl)
        return (out * weights[of]).sum(), out

    def alone(args):
        parts = [
            loss(args, slice(b, b + 1), {name: x[b] for name, x in places.items()})
            for b in range(B)
        ]
        return sum(x for x, _ in parts), jnp.concatenate([out for _, out in parts])

    got = jax.jit(jax.grad(lambda args: loss(args, slice(None), places), has_aux=True))(qkv_)
    close(got, jax.grad(alone, has_aux=True)(qkv_))


@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_prompts_padded_on_the_left_equal_prompts_without_padding(impl):
    q, k, v = helpers.qkv(B, T, N, H, K=K, D=D)
    pad = 3
    positions = np.array([np.arange(T), np.arange(T) - pad])
    slopes = np.float32([0.5, 0.25, 0.125, 0.0625])
    real = masks.fn(lambda q_pos, k_pos: k_pos >= 0)
    out = attend(
        q, k, v, mods=(mods.alibi(slopes),), mask=masks.causal & real,
        q_positions=jnp.asarray(positions), k_positions=positions, impl=impl,
    )  # fmt: skip
    s = np_scores(q, k)
    i, j = positions[:, :, None], positions[:, None]
    s -= slopes[:, None, None] * np.abs(i - j)[:, None]
    s = np.where(((j <= i) & (j >= 0))[:, None], s, -np.inf)
    close(out[0], np_attend(s[:1], v[:1])[0])
    close(out[1, pad:], np_attend(s[1:, :, pad:], v[1:])[0])
    assert not np.any(out[1, :pad])


@pytest.mark.parametrize("impl", ["dense", Blockwise(block_q=4, block_k=4)], ids=str)
def test_arrays_of_masks_in_the_order_of_the_call_under_positions_of_each_example(impl):
    """A batch padded on the left comes with a padding mask in the order of its slots."""
    q, k, v = helpers.qkv(B, T, N, H, K=K, D=D)
    pad, at = np.array([0, 3]), np.arange(T)
    real = at >= pad[:, None]  # slots
    positions = at - pad[:, None]
    ids = np.where(real, at // 5, -1)
    seen = (at <= at[:, None]) & (at >= at[:, None] - 4)
    alike = (ids[:, :, None] == ids[:, None]) & (ids[:, None] >= 0)
    for own, allowed in (
        (masks.array(real[:, None, None]), real[:, None]),
        (masks.document(ids), alike),
        (~masks.array(real[:, None, None]) | masks.document(ids), ~real[:, None] | alike),
    ):
        run = lambda positions, own=own: attend(
            q, k, v, mask=masks.window(4) & own, impl=impl,
            q_positions=positions, k_positions=positions,
        )  # fmt: skip
        want = attend(q, k, v, mask=masks.array((seen & allowed)[:, None]))
        close(run(positions), want)
        close(jax.jit(run)(positions), want)


def test_positions_of_each_example_under_a_selection_and_in_weights():
    q, k, v = helpers.qkv(B, 8, N, H, K=K, D=D)
    q_at, k_at = np.arange(16).reshape(2, 8), np.arange(8) + np.array([[0], [9]])
    both = jnp.zeros((B, 4, 1, 2), int) + jnp.arange(2)
    chosen = Selection(both, both >= 0, 2, 4)
    for impl in ("dense", "blockwise"):
        each = lambda x: jnp.asarray(x)[..., None]
        terms = {"blocks": chosen, "mask": masks.causal & masks.window(5), "impl": impl}
        got = attend(q, k, v, q_positions=q_at, k_positions=k_at, **terms)
        close(got, attend(q, k, v, q_positions=each(q_at), k_positions=each(k_at), **terms))
        seen = (k_at[:, None] <= q_at[..., None]) & (k_at[:, None] >= q_at[..., None] - 5)
        close(got, attend(q, k, v, mask=masks.array(seen[:, None])))
    terms = {"mask": masks.causal, "q_positions": q_at, "k_positions": k_at}
    weights = attention_weights(q, k, **terms)
    got = jnp.einsum("bnts,bsnd->btnd", weights, jnp.repeat(v, N // K, 2))
    close(got, attend(q, k, v, **terms))
    assert np.isneginf(attention_scores(q, k, **terms)[1, 0, 0, 1])


def test_kernels_and_rings_say_why_they_take_no_positions_of_each_example():
    q, k, v = qkv()
    told = str(explain(attend, q, k, v, **OWN))
    assert "-> dense" in told
    with pytest.raises(ValueError, match="positions of each example"):
        attend(q, k, v, **OWN, impl=Triton(interpret=True))
