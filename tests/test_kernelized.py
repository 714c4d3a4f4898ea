"""What papers on feature maps and sums over all tokens say beyond their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import features, linear_attend, masks, normalizers
from attnjax.core.pairwise import attend as engine
from attnjax.op import Sizes
from attnjax.ops.linear_recurrent import (
    Decoupled,
    additive_attention,
    care_attention,
    decoupled_attention,
    efficient_attention,
    efficient_scaled_attention,
    exponential_attention,
    exponential_attention_full,
    fast_attention,
    fast_attention_full,
    favor_attention,
    favor_attention_full,
    flow_attention,
    flow_attention_causal,
    hedgehog_attention,
    inline_attention,
    inline_local_attention,
    local_linear_attention,
    log_normal_attention,
    log_normal_attention_full,
    match_moments,
    rala,
    taylor_crossover,
    taylor_shift,
    taylor_shift_direct,
)
from attnjax.ops.linear_recurrent import care as care_leaf
from attnjax.ops.linear_recurrent import local_linear as local_leaf
from attnjax.probes import attention_map, effective_rank, numerical_rank

B, T, N, H = 2, 9, 4, 8


def draw(*shapes, seed=0, scale=1.0):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [scale * jax.random.normal(key, s) for key, s in zip(keys, shapes, strict=True)]


def qkv(T=T, H=H, seed=0, scale=1.0):
    return draw((B, T, N, H), (B, T, N, H), (B, T, N, H), seed=seed, scale=scale)


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def weights_of(op, q, k):
    """The (B,N,T,S) weights of an op(q, k, v) that is linear in v."""
    return np.asarray(attention_map(op, q, k))


TEMPERATURE = jnp.asarray([0.5, 1.0, 2.0, 4.0])
PROJECTION = features.orthogonal_rows(jax.random.key(7), 16, H)
OPEN = jnp.ones((B, T, N, T))

# What normalizes its weights: their rows sum to one.
NORMALIZED = {
    "efficient": efficient_attention,
    "exponential": exponential_attention,
    "exponential full": exponential_attention_full,
    "fast": fast_attention,
    "fast full": fast_attention_full,
    "favor": lambda q, k, v: favor_attention(q, k, v, PROJECTION),
    "favor full": lambda q, k, v: favor_attention_full(q, k, v, PROJECTION),
    "inline": inline_attention,
    "inline of relu": lambda q, k, v: inline_attention(q, k, v, phi=features.relu),
    "rala": lambda q, k, v: rala(q, k, v, OPEN),
    "relu": lambda q, k, v: linear_attend(
        features.relu(q), features.relu(k), v, normalize=normalizers.divide, block=None
    ),
    "taylor": lambda q, k, v: taylor_shift(q, k, v, TEMPERATURE),
    "taylor direct": lambda q, k, v: taylor_shift_direct(q, k, v, TEMPERATURE),
}
POSITIVE = set(NORMALIZED) - {"inline", "inline of relu"}

# What reads all tokens without regard to their places.
FULL = {
    "additive": lambda q, k, v: additive_attention(q, k, v, PROJECTION[:N]),
    "efficient": efficient_attention,
    "efficient scaled": efficient_scaled_attention,
    "exponential": exponential_attention_full,
    "fast": fast_attention_full,
    "favor": lambda q, k, v: favor_attention_full(q, k, v, PROJECTION),
    "flow": flow_attention,
    "inline": inline_attention,
    "rala": lambda q, k, v: rala(q, k, v, v),
    "taylor": lambda q, k, v: taylor_shift(q, k, v, TEMPERATURE),
    "taylor direct": lambda q, k, v: taylor_shift_direct(q, k, v, TEMPERATURE),
}

# --------------------------------------------------------------------- what many have in common


@pytest.mark.parametrize("name", NORMALIZED)
def test_the_weights_of_a_query_sum_to_one(name):
    q, k, _ = qkv()
    weights = weights_of(NORMALIZED[name], q, k)
    close(weights.sum(-1), np.ones((B, N, T)))
    assert (weights.min() >= 0) == (name in POSITIVE)


@pytest.mark.parametrize("name", FULL)
def test_permuted_tokens_permute_the_result(name):
    q, k, v = qkv()
    order = np.random.default_rng(0).permutation(T)
    close(FULL[name](q[:, order], k[:, order], v[:, order]), FULL[name](q, k, v)[:, order])


def largest(jaxpr):
    """Elements of the largest array that a jaxpr forms, those of its inner ones included."""
    sizes = [np.prod(v.aval.shape) for e in jaxpr.eqns for v in e.outvars if hasattr(v, "aval")]
    inner = [x for e in jaxpr.eqns for x in jax.tree.leaves(list(e.params.values()))]
    jaxprs = [getattr(x, "jaxpr", x) for x in inner if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
    return max([0, *sizes, *(largest(x) for x in jaxprs)])


@pytest.mark.parametrize("name", sorted(set(FULL) - {"taylor direct"}))
def test_no_array_grows_with_the_square_of_the_length(name):
    size = lambda T: largest(jax.make_jaxpr(FULL[name])(*qkv(T)).jaxpr)
    assert size(4096) <= 2.1 * size(2048)


@pytest.mark.parametrize(
    "op",
    [
        exponential_attention,
        exponential_attention_full,
        lambda q, k, v: favor_attention(q, k, v, PROJECTION),
        lambda q, k, v: favor_attention_full(q, k, v, PROJECTION),
        lambda q, k, v: hedgehog_attention(q, k, v, *draw((N, H, 3), (N, H, 3))),
        flow_attention,
        flow_attention_causal,
        efficient_attention,
    ],
)
def test_huge_exponents_neither_overflow_nor_vanish(op):
    q, k, v = qkv(scale=100.0)
    value, grad = jax.value_and_grad(lambda q, k, v: op(q, k, v).sum(), (0, 1, 2))(q, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad)
    assert np.any(np.asarray(op(q, k, jnp.ones_like(v))) > 0)


@pytest.mark.parametrize("name", FULL)
def test_zeros_have_finite_gradients(name):
    zero = jnp.zeros((B, T, N, H))
    grad = jax.grad(lambda q, k, v: jnp.sum(jnp.sin(FULL[name](q, k, v))), (0, 1, 2))
    assert all(np.isfinite(g).all() for g in grad(zero, zero, zero))


# -------------------------------------------------------------------------------------- Performer


def test_favor_approaches_softmax_as_features_grow():
    q, k, v = qkv(scale=0.5)
    exact = engine.attend(q, k, v)
    error = lambda R: np.abs(
        favor_attention_full(q, k, v, features.orthogonal_rows(jax.random.key(1), R, H)) - exact
    ).mean()
    coarse, fine = error(64), error(64 * 64)
    assert fine < 0.04 and 4 < coarse / fine < 16  # 8 = sqrt(64)


def test_positive_features_beat_fourier_features_as_attention():
    q, k, v = qkv(scale=1.5)
    phi = features.trigonometric(PROJECTION)
    fourier = linear_attend(
        phi(q * H**-0.25), phi(k * H**-0.25), v, normalize=normalizers.divide, block=None
    )
    exact = engine.attend(q, k, v)
    error = lambda out: np.abs(np.asarray(out) - exact).max()
    assert error(favor_attention_full(q, k, v, PROJECTION)) < error(fourier) / 3


# -------------------------------------------------------------------------------- efficient, FAST


def test_scaled_efficient_attention_is_dot_product_attention_over_the_length():
    q, k, v = qkv()
    scores = np.einsum("btnh,bsnh->bnts", q, k) / T
    close(efficient_scaled_attention(q, k, v), np.einsum("bnts,bsnd->btnd", scores, v))


def test_fast_attention_tends_to_the_softmax_of_standardized_tokens():
    q, k, v = qkv(H=3)
    exact = engine.attend(features.standardize(q), features.standardize(k), v, scale=1.0)
    error = [np.abs(fast_attention_full(q, k, v, order=p) - exact).max() for p in (2, 4, 6, 8)]
    assert all(b < 0.7 * a for a, b in zip(error[:-1], error[1:], strict=True))
    assert error[-1] < 0.03


def test_fast_attention_of_order_one_has_negative_weights_and_of_order_two_none():
    q, k, _ = qkv()
    first = lambda q, k, v: fast_attention_full(q, k, v, order=1)
    assert (weights_of(first, q, k) < 0).any()
    assert (weights_of(fast_attention_full, q, k) > 0).all()


# ------------------------------------------------------------------------------------ TaylorShift


def test_the_causal_efficient_form_is_the_masked_direct_form():
    q, k, v = qkv()
    causal = taylor_shift(q, k, v, TEMPERATURE, block=1)
    close(causal, taylor_shift_direct(q, k, v, TEMPERATURE, mask=masks.causal))
    far = taylor_shift(q, k, v.at[:, 5:].set(7.0), TEMPERATURE, block=1)
    close(far[:, :5], causal[:, :5])


def test_taylor_shift_approaches_softmax_for_small_scores():
    q, k, v = qkv()
    soft = lambda t: engine.attend(features.cosine(q), features.cosine(k), v, scale=t)
    error = lambda t: np.abs(taylor_shift(q, k, v, jnp.full(N, t)) - soft(t)).max()
    assert error(0.5) < 2e-2 and error(0.125) < error(0.5) / 30  # of third order: 64


def test_the_polynomial_is_at_least_one_half():
    x = jnp.linspace(-3, 1, 401)
    phi = features.taylor(2)
    f = jnp.sum(phi(x[:, None]) * phi(jnp.ones(1)), -1)
    close(f.min(), 0.5)
    close(x[jnp.argmin(f)], -1.0)


def test_the_crossovers_are_those_of_the_papers_table():
    """N_0 and N_1 of table 1, for the usual head widths."""
    table = {8: (73, 47), 16: (273, 159), 32: (1057, 574), 64: (4161, 2174), 128: (16513, 8446)}
    for width, (operations, numbers) in table.items():
        got = taylor_crossover(width)
        assert abs(got.operations - operations) < 1 and abs(got.numbers - numbers) < 1
        assert got.operations <= width**2 + width + 0.75
        assert got.numbers <= width**2 / 2 + 2 * width + 0.5


# ------------------------------------------------------------------------------------- log-normal


def moments(op, std, H=64, S=512):
    """The variance of logarithms of weights, for Gaussian q and k of one deviation."""
    q, k = draw((1, S, 1, H), (1, S, 1, H), seed=int(10 * std), scale=std)
    log_weights = np.log(weights_of(op, q, k))
    return log_weights.var(axis=-1).mean(), log_weights


def lln(q, k, v):
    return log_normal_attention_full(q, k, v, *match_moments(q, k))


def test_matched_moments_give_weights_that_vary_as_those_of_softmax():
    elu = lambda q, k, v: linear_attend(
        features.elu1(q), features.elu1(k), v, normalize=normalizers.divide, block=None
    )
    for std in (1.0, 1.2, 1.4):
        soft, _ = moments(engine.attend, std)
        ours, logs = moments(lln, std)
        close(soft, std**4, 0.1)
        assert 0.8 < ours / soft < 1.1
        assert moments(elu, std)[0] < 0.2 * soft
        centered = logs - logs.mean(-1, keepdims=True)  # nearly symmetric
        assert abs((centered**3).mean() / (centered**2).mean() ** 1.5) < 1.0


def test_moments_are_solved_for_and_have_no_gradient():
    q, k, _ = qkv(scale=1.5)
    alpha, beta = match_moments(q, 2.0 * k)
    assert alpha.shape == beta.shape == (B, 1, 1, 1)
    s_q = alpha * q.std((1, 2, 3), keepdims=True)
    close(s_q, 2 * beta * k.std((1, 2, 3), keepdims=True))
    products = (2 * q.std((1, 2, 3)) * k.std((1, 2, 3))) ** 2
    close(2 * 0.1486 * s_q.ravel() ** 2 - 0.3549, products, 1e-4)
    grad = jax.grad(lambda q: sum(x.sum() for x in match_moments(q, k)))(q)
    assert not np.any(grad)
    assert all(np.isfinite(x).all() for x in match_moments(0 * q, k))


def test_causal_log_normal_attention_ends_where_the_full_one_is():
    q, k, v = qkv()
    causal = log_normal_attention(q, k, v, 1.5, 0.5)
    close(causal[:, -1], log_normal_attention_full(q, k, v, 1.5, 0.5)[:, -1])


def test_hedgehog_heads_may_share_keys():
    q, k, v = qkv()
    w_q, w_k = draw((N, H, 3), (2, H, 3))
    twice = lambda x, axis: jnp.repeat(x, 2, axis=axis)
    few = hedgehog_attention(q, k[:, :, :2], v[:, :, :2], w_q, w_k)
    many = [twice(x[:, :, :2], 2) for x in (k, v)]
    close(few, hedgehog_attention(q, *many, w_q, twice(w_k, 0)))


# ------------------------------------------------------------------------------------------- flow


def test_flow_is_conserved_at_sinks_and_sources():
    q, k, v = qkv()
    capacity = np.einsum("btnh,bsnh->bnts", jax.nn.sigmoid(q), jax.nn.sigmoid(k))
    incoming, outgoing = capacity.sum(-1, keepdims=True), capacity.sum(-2, keepdims=True)
    allocation = jax.nn.sigmoid((capacity / outgoing).sum(-1, keepdims=True))
    source = np.minimum((capacity / incoming).sum(-2, keepdims=True), 1.0)
    competition = T * jax.nn.softmax(source, axis=-1)
    plain = weights_of(flow_attention, q, k) / allocation / competition
    close(plain.sum(-1), np.ones((B, N, T)))  # what flows into a sink
    close((plain * incoming / outgoing).sum(-2), np.ones((B, N, T)))  # and out of a source
    # without competition and allocation it is linear attention
    linear = lambda q, k, v: linear_attend(
        jax.nn.sigmoid(q), jax.nn.sigmoid(k), v, normalize=normalizers.divide, block=None
    )
    close(plain, weights_of(linear, q, k))


def test_the_first_token_of_causal_flow_keeps_its_value():
    q, k, v = qkv()
    close(flow_attention_causal(q, k, v)[:, 0], jax.nn.sigmoid(1.0) * v[:, 0])


def test_flow_favors_sources_that_few_compete_with():
    q, k, _ = qkv()
    weak = k.at[:, 3].set(-3.0)  # a source that little flows out of
    weights = weights_of(flow_attention, q, weak)
    assert (weights[..., 3] < np.delete(weights, 3, axis=-1).min(-1)).all()


# ----------------------------------------------------------------------------------------- InLine


def test_inline_tells_collinear_queries_apart_and_division_does_not():
    q, k, _ = qkv()
    divided = NORMALIZED["relu"]
    close(weights_of(divided, 3.0 * q, k), weights_of(divided, q, k))
    for name in ("inline", "inline of relu"):
        away = np.abs(weights_of(NORMALIZED[name], 3 * q, k) - weights_of(NORMALIZED[name], q, k))
        assert (away.max(-1) > 0.1).all()


def test_the_local_residual_reaches_the_neighbors_of_a_cell_alone():
    q, k, v = qkv(T=20)
    r = jnp.arange(1.0, 10.0).reshape(3, 3) * jnp.ones((B, N, 1, 1))
    near = lambda q, k, v: (
        inline_local_attention(q, k, v, r, shape=(4, 5)) - inline_attention(q, k, v)
    )
    cell = weights_of(near, q, k)[0, 0, 1 * 5 + 2].reshape(4, 5)
    want = np.zeros((4, 5))
    want[0:3, 1:4] = np.arange(1, 10).reshape(3, 3)
    close(cell, want, 1e-4)
    corner = weights_of(near, q, k)[0, 0, 0].reshape(4, 5)
    close(corner[:2, :2], [[5, 6], [8, 9]], 1e-4)


# ------------------------------------------------------------------------------------- RALA, rank


def test_ranks_of_matrices_that_are_known():
    u, v = draw((6, 2), (2, 5))
    close(numerical_rank(jnp.stack([u @ v, jnp.zeros((6, 5))])), [2, 0])
    assert numerical_rank(jnp.diag(jnp.asarray([1.0, 1e-2, 1e-4]))) == 2
    assert numerical_rank(jnp.diag(jnp.asarray([1.0, 1e-2, 1e-4])), tolerance=1e-1) == 1
    close(effective_rank(jnp.eye(4)), 4.0)
    close(effective_rank(jnp.outer(u[:, 0], v[0])), 1.0, 1e-3)
    close(effective_rank(jnp.diag(jnp.asarray([3.0, 1.0]))), 4 * 3**-0.75)
    close(effective_rank(jnp.zeros((2, 2))), 1.0)


def test_rank_augmentation_raises_the_rank_of_the_output():
    D, S, width = 16, 24, 4
    q, k, v, gate = draw((1, S, 1, width), (1, S, 1, width), (1, S, 1, D), (1, S, 1, D))
    rank = lambda out: int(numerical_rank(out[0, :, 0]))
    assert rank(rala(q, k, v, jnp.ones_like(gate))) == width
    assert rank(rala(q, k, v, gate)) == D


def test_the_global_query_weighs_the_tokens():
    q, k, _ = qkv()
    mean = q.mean(1, keepdims=True)
    liked = k.at[:, 4].set(20.0 * mean[:, 0] / jnp.linalg.norm(mean[:, 0], axis=-1, keepdims=True))
    weights = weights_of(NORMALIZED["rala"], q, liked)
    assert weights[..., 4].mean() > 0.9


# --------------------------------------------------------------- convolutions beside the attention


def test_relu_weights_are_zero_for_a_query_without_a_positive_key():
    q, k, v = qkv()
    local = local_leaf._closed(jax.random.key(0), Sizes())
    out = local_linear_attention(q.at[0, 2].set(-1.0), k, v, local, shape=(3, 3))
    assert not np.any(out[0, 2]) and np.all(np.any(out[1], -1))


def test_decoupled_channels_are_linear_attention_or_convolutions_alone():
    x = draw((B, 12, 8))[0]
    w = draw((3, 8, 2, 4))[0]
    none = jnp.zeros((3, 3, 0))
    q, k, v = jnp.einsum("btc,pcnh->pbtnh", x, w)
    want = linear_attend(
        features.elu1(q), features.elu1(k), v, normalize=normalizers.divide, block=None
    )
    only_far = decoupled_attention(x, Decoupled(w, none, none), shape=(3, 4))
    close(only_far, want.reshape(B, 12, 8), 1e-4)

    one = jnp.zeros((3, 3, 4)).at[1, 2].set(1.0)  # the right neighbor
    near = decoupled_attention(x, Decoupled(jnp.zeros((3, 0, 1, 0)), one, 2 * one), shape=(3, 4))
    grid, moved = x.reshape(B, 3, 4, 8), near.reshape(B, 3, 4, 8)
    scale = jnp.asarray([1.0] * 4 + [2.0] * 4)
    close(moved[:, :, :-1], scale * grid[:, :, 1:])
    assert not np.any(moved[:, :, -1])


def test_linear_attention_on_fewer_channels_costs_the_square_of_their_share():
    def flops(d1):
        x = jnp.zeros((1, 64, 64))
        weights = Decoupled(jnp.zeros((3, d1, 1, d1)), *[jnp.zeros((3, 3, (64 - d1) // 2))] * 2)
        run = jax.jit(lambda x: decoupled_attention(x, weights, shape=(8, 8)))
        near = 2 * 9 * 64 * (64 - d1)
        return run.lower(x).compile().cost_analysis()["flops"] - near

    assert 2.5 < flops(32) / flops(16) < 5


def test_care_carries_its_memory_to_the_next_layer():
    z = Sizes(T=12)
    key = jax.random.key(3)
    x, memory = care_leaf.tokens(key, z), draw((B, 12, z.M))[0]
    weights = care_leaf._weights(key, z)
    run = lambda x, memory, weights=weights: care_attention(
        x, memory, weights, shape=(3, 4), return_memory=True
    )
    out, carried = run(x, memory)
    assert out.shape == x.shape and carried.shape == memory.shape
    assert np.abs(carried - memory).max() > 0.1
    other, _ = run(x, 0 * memory)
    assert np.abs(other - out).max() > 1e-3  # the memory is heard

    silent = care_leaf._closed(key, z)  # a second interaction of zeros leaves both alone
    out, carried = run(x, memory, silent)
    close(carried, memory)
    close(out, run(x, 0 * memory, silent)[0])


# --------------------------------------------------------------------------------------- additive


def test_a_token_that_is_not_valid_leaves_the_pooled_query():
    q, k, v = qkv()
    w = PROJECTION[:N]
    valid = jnp.ones((B, T), bool).at[1, 6:].set(False)
    short = additive_attention(q[1:, :6], k[1:, :6], v[1:, :6], w)
    spoiled = q.at[1, 6:].set(jnp.nan)
    close(additive_attention(spoiled, k, v, w, valid=valid)[1:, :6], short)
    grad = jax.grad(lambda q: additive_attention(q, k, v, w, valid=valid)[:, :6].sum())(spoiled)
    assert np.isfinite(grad).all() and not np.any(grad[1, 6:])


def test_pooling_weights_sum_to_one():
    q, k, v = qkv()
    same = jnp.broadcast_to(q[:, :1], q.shape)
    close(additive_attention(same, k, v, PROJECTION[:N]), same * k * v)
