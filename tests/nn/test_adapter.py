"""as_attention_fn: Flax's masks join those of ops, decoding gives queries their places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import attnjax
from attnjax import attend, masks, mods
from attnjax.nn import as_attention_fn
from attnjax.ops.kv_decode import sink_window_attention
from attnjax.ops.linear_recurrent import linear_attention
from attnjax.ops.softmax_core import (
    multi_head_attention,
    selective_attention,
    softpick_attention,
)
from tests.helpers import draw

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625])
alibi = functools.partial(
    attend, mods=(mods.alibi(jnp.asarray(SLOPES, jnp.float32)),), mask=masks.causal
)


def oracle(q, k, v, allowed, bend=lambda s, n, i, j: s):
    """Softmax attention in float64; `allowed` is broadcastable to (B,N,T,S)."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    k, v = (np.repeat(x, N // x.shape[2], axis=2) for x in (k, v))
    s = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    n, i, j = (x[None] for x in np.ogrid[:N, :T, : k.shape[1]])
    e = np.exp(bend(s, n, i, j)) * np.broadcast_to(allowed, s.shape)
    total = e.sum(-1, keepdims=True)
    w = np.divide(e, total, out=np.zeros_like(e), where=total > 0)
    return np.einsum("bnts,bsnd->btnd", w, v)


def qkv(T=7, S=7, K=4, lead=(2,)):
    shapes = (*lead, T, 4, 8), (*lead, S, K, 8), (*lead, S, K, 6)
    return tuple(draw(*shape, seed=i) for i, shape in enumerate(shapes))


I, J = np.arange(7)[:, None], np.arange(7)[None]
PADDING = (np.arange(7) < np.array([4, 7])[:, None])[:, None, None]
RULES = {
    "causal": (functools.partial(attend, mask=masks.causal), J <= I),
    "window": (functools.partial(attend, mask=masks.window(2, 1)), (I - 2 <= J) & (J <= I + 1)),
    "sinks": (
        functools.partial(sink_window_attention, sinks=1, window=2),
        (J <= I) & ((J < 1) | (J > I - 2)),
    ),
    "to the end": (functools.partial(attend, mask=masks.causal_to_end), J <= I),
    "array": (functools.partial(attend, mask=masks.array((I + J) % 3 > 0)), (I + J) % 3 > 0),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [bool, np.float32])
def test_a_mask_of_flax_joins_the_ops_own(rule, kind):
    op, allowed = RULES[rule]
    q, k, v = qkv(K=2)
    fn = as_attention_fn(op)
    close(fn(q, k, v, mask=jnp.ones((2, 1, 1, 7), kind)), oracle(q, k, v, allowed))
    close(fn(q, k, v, mask=jnp.asarray(PADDING, kind)), oracle(q, k, v, allowed & PADDING))
    both = allowed & PADDING & (J <= I)
    close(fn(q, k, v, mask=jnp.asarray(PADDING), is_causal=True), oracle(q, k, v, both))


def test_softpick_sees_no_future_under_a_padding_mask():
    q, k, v = qkv()
    out = as_attention_fn(softpick_attention)(q, k, v, mask=jnp.ones((2, 1, 1, 7), bool))
    close(out, softpick_attention(q, k, v))


def mask_required(q, k, v, *, mask):
    return attend(q, k, v, mask=mask)


def mask_unset(q, k, v, mask=None):
    return attend(q, k, v, mask=masks.causal if mask is None else mask)


def test_masks_that_have_no_default_or_none():
    q, k, v = qkv()
    padding = jnp.asarray(PADDING)
    close(as_attention_fn(mask_required)(q, k, v), oracle(q, k, v, True))
    close(as_attention_fn(mask_required)(q, k, v, mask=padding), oracle(q, k, v, PADDING))
    close(as_attention_fn(mask_unset)(q, k, v), oracle(q, k, v, J <= I))
    passes = as_attention_fn(lambda q, k, v, **more: attend(q, k, v, **more))
    close(passes(q, k, v, mask=padding), oracle(q, k, v, PADDING))
    with pytest.raises(ValueError, match="mask: linear_attention has no such argument"):
        as_attention_fn(linear_attention)(q, k, v, mask=padding)
    with pytest.raises(TypeError, match="op's mask is ndarray by default, expected a Mask"):
        as_attention_fn(functools.partial(attend, mask=J <= I))


# ------------------------------------------------------------------------------- decoding


def one_by_one(fn, q, k, v, **options):
    """What a cache of Flax hands over at each step: later keys are zeros yet."""
    S = k.shape[1]
    steps = []
    for t in range(S):
        seen = jnp.arange(S) <= t
        now = lambda x: jnp.where(seen[:, None, None], x, 0)  # noqa: B023
        mask = jnp.broadcast_to(seen, (len(q), 1, 1, S)).astype(jnp.float32)
        steps.append(fn(q[:, t : t + 1], now(k), now(v), mask=mask, **options))
    return jnp.concatenate(steps, axis=1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_ops_decode_as_they_prefill(rule, is_causal):
    op, allowed = RULES[rule]
    q, k, v = qkv(K=2)
    step = jax.jit(as_attention_fn(op), static_argnames="is_causal")
    got = one_by_one(step, q, k, v, is_causal=is_causal)
    close(got, oracle(q, k, v, allowed & (J <= I)))


def test_an_op_whose_rows_depend_on_other_queries_does_not_decode():
    q, k, v = qkv(T=1)
    seen = jnp.arange(7)[None, None, None] < 4
    decode = as_attention_fn(selective_attention)
    with pytest.raises(ValueError, match="rows of selective_attention depend on other queries"):
        jax.jit(functools.partial(decode, mask=seen))(q, k, v)
    close(as_attention_fn(softpick_attention)(q, k, v, mask=seen).shape, (2, 1, 4, 6))


def test_scores_that_depend_on_positions_decode_as_they_prefill():
    q, k, v = qkv()
    bend = lambda s, n, i, j: s - SLOPES[n] * np.abs(i - j)
    want = oracle(q, k, v, J <= I, bend)
    close(one_by_one(as_attention_fn(alibi), q, k, v), want)
    inside = lambda q, k, v, *, mask=masks.causal: alibi(q, k, v, mask=mask)
    close(one_by_one(as_attention_fn(inside), q, k, v), want)


class LinenCached(linen.Module):
    """Prefill and decoding of linen's layer with one set of parameters."""

    @linen.compact
    def __call__(self, x, decode, mask=None):
        return linen.MultiHeadDotProductAttention(
            4, decode=decode, attention_fn=as_attention_fn(alibi), name="layer"
        )(x, mask=mask)


def test_linen_decodes_with_its_cache_as_it_prefills():
    x = draw(2, 3, 5, 12)  # two batch axes
    variables = LinenCached().init(jax.random.key(0), x, True)
    whole = LinenCached().apply({"params": variables["params"]}, x, False)
    cache, steps = variables["cache"], []
    step = jax.jit(
        lambda cache, x: LinenCached().apply(
            {"params": variables["params"], "cache": cache}, x, True, mutable=["cache"]
        )
    )
    for t in range(5):
        out, updated = step(cache, x[:, :, t : t + 1])
        cache = updated["cache"]
        steps.append(out)
    close(jnp.concatenate(steps, axis=2), whole)


@pytest.mark.parametrize("op", [attend, multi_head_attention, RULES["sinks"][0]])
def test_nnx_decodes_causally_as_it_prefills(op):
    module = nnx.MultiHeadAttention(
        4, 12, rngs=nnx.Rngs(0), num_kv_heads=2, attention_fn=as_attention_fn(op)
    )
    x = draw(2, 5, 12)
    whole = module(x, decode=False, is_causal=True)
    module.init_cache((2, 5, 12))
    steps = [module(x[:, t : t + 1], decode=True, is_causal=True) for t in range(5)]
    close(jnp.concatenate(steps, axis=1), whole)


def test_padding_of_a_decoding_step_does_not_move_the_query():
    q, k, v = qkv()
    fn = as_attention_fn(RULES["window"][0])
    cached = np.arange(7) <= 5
    left = np.arange(7) >= np.array([0, 3])[:, None]  # prompts padded on the left
    mask = jnp.asarray((cached & left)[:, None, None])
    want = oracle(q, k, v, RULES["window"][1] & np.asarray(mask))[:, 5:6]
    close(fn(q[:, 5:6], k, v, mask=mask), want)


# ------------------------------------------------------------------- shapes, dtypes, options


@pytest.mark.parametrize("lead", [(), (2, 3), (2, 1, 2)])
def test_any_leading_axes(lead):
    q, k, v = qkv(T=3, S=5, K=2, lead=lead)
    flat = [np.reshape(x, (-1, *x.shape[-3:])) for x in (q, k, v)]
    fn = as_attention_fn(attend)
    close(fn(q, k, v), oracle(*flat, True).reshape(*lead, 3, 4, 6))
    for shape in [(3, 5), (4, 3, 5), (*lead, 1, 1, 5), (*lead, 4, 3, 5)]:
        allowed = np.random.default_rng(1).random(shape) < 0.6
        rows = np.broadcast_to(allowed, (*lead, 4, 3, 5)).reshape(-1, 4, 3, 5)
        want = oracle(*flat, rows).reshape(*lead, 3, 4, 6)
        close(fn(q, k, v, mask=jnp.asarray(allowed)), want)


def test_sown_weights_have_the_leading_axes_and_dtype_of_flax():
    x = draw(2, 3, 7, 12).astype(jnp.bfloat16)
    for force, dtype in ((True, jnp.float32), (False, jnp.bfloat16)):
        layer = linen.MultiHeadDotProductAttention(
            4, dtype=jnp.bfloat16, force_fp32_for_softmax=force,
            attention_fn=as_attention_fn(attend),
        )  # fmt: skip
        variables = layer.init(jax.random.key(0), x)
        _, sown = layer.apply(variables, x, sow_weights=True, mutable="intermediates")
        (weights,) = sown["intermediates"]["attention_weights"]
        assert weights.shape == (2, 3, 4, 7, 7) and weights.dtype == dtype
        close(weights.astype(jnp.float32).sum(-1), 1.0, atol=0.02)


def test_dot_product_attention_is_an_op_too():
    q, k, v = qkv()
    fn = as_attention_fn(functools.partial(attnjax.dot_product_attention, is_causal=True))
    close(fn(q, k, v, mask=jnp.asarray(PADDING)), oracle(q, k, v, PADDING & (J <= I)))
    close(one_by_one(fn, q, k, v), oracle(q, k, v, J <= I))


def test_common_dtype_and_linens_own_dot_general():
    q, k, v = qkv()
    fn = as_attention_fn(attend)
    assert fn(q.astype(jnp.bfloat16), k, v).dtype == jnp.float32
    close(fn(q, k, v, einsum_dot_general=jax.lax.dot_general), oracle(q, k, v, True))
    with pytest.raises(ValueError, match="einsum_dot_general: got .* expected None or jax.lax"):
        fn(q, k, v, einsum_dot_general=lambda *_: None)


def dropped(**options):
    """The weights that dropout leaves, (B,N,T,S): attention over an identity matrix of values."""
    q = jnp.zeros((2, 7, 4, 3))
    eye = jnp.broadcast_to(jnp.eye(7)[None, :, None], (2, 7, 4, 7))
    fn = as_attention_fn(functools.partial(attend, mask=masks.causal))
    return np.asarray(fn(q, q, eye, **options)).swapaxes(1, 2)


def test_dropout_of_weights_is_that_of_attend_and_shared_where_flax_shares_it():
    rng, rate = jax.random.key(3), 0.25
    whole = np.tri(7) / (np.arange(7) + 1)[:, None]
    for broadcast in (True, False):
        options = {"dropout_rate": rate, "dropout_rng": rng, "broadcast_dropout": broadcast}
        got = dropped(**options)
        close(got, whole * (got > 0) / (1 - rate))
        assert 0 < (got > 0).sum() < 2 * 4 * 28
        assert np.all(got == got[:1, :1]) == broadcast
        close(dropped(**options, deterministic=True), np.broadcast_to(whole, got.shape))
    close(
        dropped(dropout_rate=rate, dropout_rng=jax.random.PRNGKey(3)),
        dropped(dropout_rate=rate, dropout_rng=rng),
    )
    with pytest.raises(ValueError, match="dropout_rng: got None with dropout_rate 0.25"):
        dropped(dropout_rate=rate)
    with pytest.raises(ValueError, match="0.25 .* softpick_attention has no argument dropout"):
        as_attention_fn(softpick_attention)(*qkv(), dropout_rate=rate, dropout_rng=rng)


@pytest.mark.parametrize("impl", ["dense", "blockwise"])
def test_a_layer_of_nnx_trains_with_dropout(impl):
    layer = nnx.MultiHeadAttention(
        4, 12, dropout_rate=0.5, decode=False, rngs=nnx.Rngs(0),
        attention_fn=as_attention_fn(functools.partial(attend, impl=impl)),
    )  # fmt: skip
    x = draw(2, 7, 12)
    loss = lambda m, x: (m(x, deterministic=False, rngs=nnx.Rngs(dropout=1)) ** 2).sum()
    same, other = loss(layer, x), (layer(x, deterministic=True) ** 2).sum()
    assert loss(layer, x) == same != other
    gradient = jax.grad(lambda x: loss(layer, x))(x)
    step = draw(2, 7, 12, seed=4) * 1e-2
    slope = (loss(layer, x + step) - loss(layer, x - step)) / 2
    np.testing.assert_allclose((gradient * step).sum(), slope, rtol=2e-2)


@pytest.mark.parametrize("rate", [float("nan"), -0.5, 1.0, 2.0])
def test_dropout_rates_that_are_none(rate):
    with pytest.raises(ValueError, match=r"dropout_rate: got .*, expected a number in \[0, 1\)"):
        as_attention_fn(attend)(*qkv(), dropout_rate=rate, deterministic=True)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((2, 5, 4, 8), (5, 4, 8), (5, 4, 8)), "q, k, v must have the same rank"),
        (((5, 8), (5, 8), (5, 8)), "q, k, v must have the same rank, 3 at least"),
        (((2, 5, 4, 8), (3, 5, 4, 8), (3, 5, 4, 8)), "q, k, v batch dims must match"),
        (((2, 5, 4, 8), (2, 5, 4, 8), (2, 6, 4, 8)), "k, v lengths must match"),
        (((2, 5, 4, 8), (2, 5, 4, 7), (2, 5, 4, 8)), "q, k depths must match"),
        (((2, 5, 5, 8), (2, 5, 2, 8), (2, 5, 2, 8)), "N must be a multiple of the keys' K"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ValueError, match=message):
        as_attention_fn(attend)(*(jnp.ones(shape) for shape in shapes))


def test_a_mask_that_does_not_fit():
    with pytest.raises(ValueError, match=r"mask: got shape \(3, 1, 1, 7\), expected one broad"):
        as_attention_fn(attend)(*qkv(), mask=jnp.ones((3, 1, 1, 7), bool))
