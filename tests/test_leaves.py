"""What the papers say of their mechanisms beyond the formulas, which the laws cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.kv_decode import sink_window_attention
from attnjax.ops.local_structured import neighborhood_attention
from attnjax.ops.position import disentangled_attention, dual_triangle_attention
from attnjax.ops.softmax_core import (
    clipped_softmax_attention,
    cog_attention,
    forgetting_attention,
    gated_attention,
    luong_concat,
    luong_dot,
    luong_local_predictive,
    multi_head_attention,
    pointer_attention,
    rela,
    selection,
    selective_attention,
    sinusoidal_positions,
    softpick_attention,
    softplus_attention,
    unused,
)
from tests.oracles import ORACLES

B, T, N, H = 2, 9, 4, 8


def draw(*letters, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(letters))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, letters, strict=True)]


def qkv(T=T, seed=0):
    return draw((B, T, N, H), (B, T, N, H), (B, T, N, H), seed=seed)


def weights_of(op, q, k, *rest, **options):
    """The (B,N,T,S) weights of an op that is linear in v, read with the identity for v."""
    S = k.shape[1]
    v = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, k.shape[2], S))
    return np.asarray(op(q, k, v, *rest, **options).transpose(0, 2, 1, 3))


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# --------------------------------------------------------------------------- multi-head attention


def test_multi_head_attention_is_that_of_jax_nn():
    q, k, v = qkv()
    close(multi_head_attention(q, k, v), jax.nn.dot_product_attention(q, k, v))
    causal = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    close(multi_head_attention(q, k, v, mask=masks.causal), causal)


def test_multi_head_attention_without_positions_permutes_with_its_tokens():
    q, k, v = qkv()
    order = np.random.default_rng(0).permutation(T)
    permuted = multi_head_attention(q[:, order], k[:, order], v[:, order])
    close(permuted, multi_head_attention(q, k, v)[:, order])


def test_a_shift_of_positions_is_a_rotation_of_their_code():
    width, shift = 10, 7
    code = np.asarray(sinusoidal_positions(40, width))
    rates = 10000.0 ** (-np.arange(0, width, 2) / width)
    for pair, rate in enumerate(rates):
        cos, sin = np.cos(shift * rate), np.sin(shift * rate)
        turn = np.array([[cos, sin], [-sin, cos]])  # acts on (sine, cosine)
        pairs = code[:, 2 * pair : 2 * pair + 2]
        close(pairs[shift:], pairs[:-shift] @ turn.T)
    close(code[3, 4:6], [np.sin(3 * rates[2]), np.cos(3 * rates[2])])


def test_sinusoidal_positions_refuse_an_odd_width():
    with pytest.raises(ValueError, match="width: 5; expected an even number"):
        sinusoidal_positions(4, 5)


# ------------------------------------------------------------------------------- luong, pointer


def test_local_predictive_sees_its_window_only_and_moves_its_center():
    q, k, v = qkv()
    center = jax.random.uniform(jax.random.key(3), (B, T, N), minval=0.0, maxval=T)
    weights = weights_of(luong_local_predictive, q, k, center, radius=2)
    off = np.arange(T) - np.asarray(center).transpose(0, 2, 1)[..., None]
    assert (weights[np.abs(off) > 2] == 0).all()
    assert (weights[np.abs(off) <= 2] > 0).all()
    loss = lambda c: luong_local_predictive(q, k, v, c, radius=2).sum()
    step = 1e-2 * jax.random.normal(jax.random.key(4), center.shape)
    slope = jnp.vdot(jax.grad(loss)(center), step)
    close(loss(center + step / 2) - loss(center - step / 2), slope, 2e-3)
    with pytest.raises(ValueError, match="radius: 0; expected at least 1"):
        luong_local_predictive(q, k, v, center, radius=0)


def test_pointers_follow_their_inputs_and_avoid_used_ones():
    q, k, v = qkv()
    w_query, w_key, w_score = draw((H, 5), (H, 5), (5,), seed=1)
    p = pointer_attention(q, k, w_query, w_key, w_score)
    close(p.sum(-1), np.ones((B, N, T)))
    order = np.random.default_rng(0).permutation(T)
    close(pointer_attention(q, k[:, order], w_query, w_key, w_score), p[..., order])
    blended = jnp.einsum("BNTS,BSND->BTND", p, v)
    close(blended, luong_concat(q, k, v, w_query, w_key, w_score))

    chosen = jnp.stack([jnp.arange(T), jnp.arange(T)[::-1]])
    p = pointer_attention(q, k, w_query, w_key, w_score, mask=unused(chosen, T))
    for step in range(T):
        assert (p[0, :, step, :step] == 0).all() and (p[1, :, step, T - step :] == 0).all()
        assert (p[0, :, step, step:] > 0).all() and (p[1, :, step, : T - step] > 0).all()


# --------------------------------------------------------------- gates, selection, normalizers


def test_a_closed_forget_gate_hides_all_keys_before_it():
    q, k, v = qkv()
    log_f = jnp.zeros((B, T, N)).at[:, 4].set(-1e9)
    after = forgetting_attention(q, k, v, log_f)[:, 4:]
    close(after, multi_head_attention(q[:, 4:], k[:, 4:], v[:, 4:], mask=masks.causal))


def test_clipped_softmax_has_exact_zeros_that_pass_no_gradient():
    q, k, _ = qkv()
    clipped = lambda k, v: clipped_softmax_attention(q, k, v, gamma=-0.1)
    weights = weights_of(lambda q, k, v: clipped(k, v), q, k)
    soft = weights_of(multi_head_attention, q, k)
    assert (weights == 0).any() and (weights <= soft).all() and (weights[soft < 0.09] == 0).all()
    close(weights, np.maximum(1.1 * soft - 0.1, 0))
    eye = jnp.broadcast_to(jnp.eye(T)[None, :, None], (B, T, N, T))
    zeros = jnp.asarray(weights == 0).transpose(0, 2, 1, 3)
    grad = jax.grad(lambda k: jnp.where(zeros, clipped(k, eye), 0.0).sum())(k)
    assert (grad == 0).all()


def test_a_closed_gate_closes_its_own_head_and_token_only():
    q, k, v = qkv()
    gate = jnp.full((B, T, N), 100.0).at[1, 3, 2].set(-100.0)
    out = gated_attention(q, k, v, gate)
    close(out, multi_head_attention(q, k, v).at[1, 3, 2].set(0.0))


def test_selection_grows_and_spares_the_first_token_and_the_asking_one():
    q, k, v = qkv()
    F = np.asarray(selection(q, k))
    assert (np.diff(F, axis=1) >= 0).all() and F.max() > 0
    assert (F[:, :, 0] == 0).all()
    for later in (0, 1):  # neither the query now nor the one before asks to forget itself
        assert (np.diagonal(F, offset=-later, axis1=1, axis2=2) == 0).all()
    modest = q.at[:, :, 0].set(0.0)  # head 0 asks for nothing
    close(
        selective_attention(modest, k, v),
        multi_head_attention(modest, k, v, mask=masks.causal),
    )
    assert jnp.abs(selective_attention(q, k, v)[:, :, 1:] - multi_head_attention(
        q, k, v, mask=masks.causal)[:, :, 1:]).max() > 0.01  # fmt: skip


def test_softpick_gives_zero_to_scores_below_zero_yet_moves_them():
    q, k, _ = qkv()
    scores = np.einsum("btnh,bsnh->bnts", q, k)
    weights = weights_of(softpick_attention, q, k, mask=masks.everything)
    assert (weights[scores <= 0] == 0).all() and (weights[scores > 1e-3] > 0).all()
    assert (weights.sum(-1) <= 1).all()
    v = jnp.ones((B, T, N, 1))
    below = k - 2 * jax.nn.relu(k * q[:, :1]) / q[:, :1]  # k . q_0 < 0 with every term
    k = k.at[:, 1].set(below[:, 1])
    grad = jax.grad(lambda k: softpick_attention(q[:, :1], k, v, mask=masks.everything).sum())(k)
    assert (jnp.abs(grad[:, 1]).max(-1) > 0).all()


def test_rela_ignores_the_scale_of_scores():
    q, k, v = qkv()
    (gain,) = draw((N, H), seed=2)
    close(rela(7.0 * q, k, v, gain), rela(q, k, v, gain), 1e-4)


def test_cog_weights_are_signed_and_softmax_when_scores_are_positive():
    q, k, v = qkv()
    weights = weights_of(cog_attention, q, k)
    close(np.abs(weights).sum(-1), np.ones((B, N, T)))
    assert (weights < 0).any()
    q, k = jnp.abs(q), jnp.abs(k)
    close(cog_attention(q, k, v), multi_head_attention(q, k, v, mask=masks.causal))


def test_softplus_weights_sum_to_one_and_sharpen_to_exact_zeros():
    q, k, _ = qkv()
    seen = np.tril(np.ones((T, T), bool))
    plain = weights_of(softplus_attention, q, k)
    close(plain.sum(-1), np.ones((B, N, T)))
    assert (plain[..., seen] > 0).all()
    sharp = weights_of(softplus_attention, q, k, power=3, offset=0.9)
    close(sharp.sum(-1), np.ones((B, N, T)))
    level = plain * seen.sum(-1)[:, None]
    assert (sharp[level < 0.899] == 0).all() and (sharp[level > 0.901] > 0).all()
    assert np.isfinite(weights_of(softplus_attention, 1e4 * q, k, power=3, offset=0.9)).all()


# ------------------------------------------------------------------------------ places and order


def test_disentangled_attention_refuses_tables_that_do_not_fit():
    q, k, v = qkv()
    odd, even = draw((5, N, H), (6, N, H))
    with pytest.raises(ValueError, match=r"q_rel, k_rel: \(5, 4, 8\) .* expected"):
        disentangled_attention(q, k, v, odd, odd)
    with pytest.raises(ValueError, match=r"q_rel, k_rel: \(6, 4, 8\) and \(5, 4, 8\)"):
        disentangled_attention(q, k, v, even, odd)


def test_dual_triangle_halves_look_one_way_each():
    past, other = qkv(), qkv(seed=1)
    mixed = [
        jnp.concatenate([a[:, :5], b[:, 5:]], axis=1) for a, b in zip(past, other, strict=True)
    ]
    a, b = dual_triangle_attention(*past), dual_triangle_attention(*mixed)
    close(a[:, :5, :, : H // 2], b[:, :5, :, : H // 2], 1e-6)
    assert (jnp.abs(a - b)[:, :5, :, H // 2 :].max((1, 3)) > 0.01).all()
    swap = lambda x: jnp.concatenate([x[..., H // 2 :], x[..., : H // 2]], axis=-1)[:, ::-1]
    close(swap(dual_triangle_attention(*(swap(x) for x in past))), a)


def test_dual_triangle_refuses_an_odd_width():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="v: width 7; expected an even width"):
        dual_triangle_attention(q, k, v[..., :7])


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
    q, k, v = qkv(int(np.prod(grid["shape"])))
    windows = np.broadcast_to(grid["window"], len(grid["shape"]))
    (table,) = draw((N, *(2 * w - 1 for w in windows)), seed=5)
    exact = [np.asarray(x, np.float64) for x in (q, k, v)]
    for extra in ({}, {"table": table}):
        wanted = ORACLES["neighborhood_attention"](
            *exact, **grid, **{name: np.asarray(x, np.float64) for name, x in extra.items()}
        )
        close(neighborhood_attention(q, k, v, **grid, **extra), wanted)
    if "causal" in grid:  # at its beginning there are fewer keys
        return
    weights = weights_of(neighborhood_attention, q, k, **grid)
    assert ((weights > 0).sum(-1) == windows.prod()).all()


def test_dilation_is_attention_on_interleaved_sub_grids():
    q, k, v = qkv(24)
    out = neighborhood_attention(q, k, v, shape=(4, 6), window=2, dilation=2)
    grid = lambda x: x.reshape(B, 4, 6, N, H)
    for row, column in np.ndindex(2, 2):
        cut = lambda x, at=np.s_[:, row::2, column::2]: grid(x)[at].reshape(B, 6, N, H)
        close(cut(out), neighborhood_attention(cut(q), cut(k), cut(v), shape=(2, 3), window=2))


def test_a_bias_of_another_window_is_refused():
    q, k, v = qkv(12)
    with pytest.raises(ValueError, match=r"table: shape \(4, 3, 3\); expected \(4, 5, 3\)"):
        table = jnp.zeros((N, 3, 3))
        neighborhood_attention(q, k, v, shape=(4, 3), window=(3, 2), table=table)


def test_the_bias_of_a_neighborhood_learns():
    q, k, v = qkv(12)
    (table,) = draw((N, 5, 3), seed=5)
    loss = lambda t: jnp.square(
        neighborhood_attention(q, k, v, shape=(4, 3), window=(3, 2), table=t)
    ).sum()
    assert (jnp.abs(jax.grad(loss)(table)) > 0).all()


def test_sinks_and_window_bound_the_keys_of_a_query():
    q, k, v = qkv(12)
    weights = weights_of(sink_window_attention, q, k, sinks=2, window=3)
    assert [(row > 0).sum() for row in weights[0, 0]] == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5]
    with pytest.raises(ValueError, match="window: 0; expected at least 1"):
        sink_window_attention(q, k, v, window=0)


def test_luong_dot_is_not_scaled():
    q, k, v = qkv()
    close(luong_dot(q, k, v), multi_head_attention(q * H**0.5, k, v))
