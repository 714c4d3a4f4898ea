"""nn.Attention against NumPy, and any op inside Flax's own modules, NNX and linen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from attnjax import attend, masks
from attnjax.nn import Attention, HeadGate, as_attention_fn
from tests.helpers import draw

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
causal = functools.partial(attend, mask=masks.causal)


def oracle(x, module, allowed):
    """Loops over batch, heads and queries, in float64, off the module's own kernels."""
    wide = lambda a: np.asarray(a, np.float64)
    project = lambda m: np.einsum("btc,cnh->btnh", wide(x), wide(m.kernel[...]))
    q, k, v = project(module.q), project(module.k), project(module.v)
    G = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(*q.shape[:3]):
        keys = [s for s in range(k.shape[1]) if allowed(t, s)]
        scores = np.array([q[b, t, n] @ k[b, s, n // G] for s in keys]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, t, n] = sum(w * v[b, s, n // G] for w, s in zip(weights, keys, strict=True))
    return out, np.einsum("btnh,nhc->btc", out, wide(module.o.kernel[...]))


@pytest.mark.parametrize("kv_heads, head_width", [(None, None), (2, 5)])
def test_attention_is_projections_around_the_function(kv_heads, head_width):
    module = Attention(
        12, 4, kv_heads=kv_heads, head_width=head_width, attend=causal, rngs=nnx.Rngs(0)
    )
    x = draw(2, 7, 12)
    close(module(x), oracle(x, module, lambda t, s: s <= t)[1])


def test_a_gate_scales_each_head_and_a_closed_one_writes_nothing():
    gate = HeadGate(12, 4, bias=0.5, rngs=nnx.Rngs(1))
    module = Attention(12, 4, attend=causal, gate=gate, rngs=nnx.Rngs(0))
    x = draw(2, 7, 12)
    heads, _ = oracle(x, module, lambda t, s: s <= t)
    logits = np.asarray(x, np.float64) @ np.asarray(gate.linear.kernel[...]) + 0.5
    gated = heads / (1 + np.exp(-logits))[..., None]
    close(module(x), np.einsum("btnh,nhc->btc", gated, np.asarray(module.o.kernel[...])))
    gate.linear.bias[...] = jnp.full(4, -200.0)
    close(module(x), np.zeros((2, 7, 12)))


def test_cross_attention_takes_keys_from_the_context():
    module = Attention(12, 4, attend=attend, rngs=nnx.Rngs(0))
    x, context = draw(2, 3, 12), draw(2, 7, 12, seed=1)
    q, k, v = module.project(x, context)
    assert k.shape == (2, 7, 4, 3)
    close(module(x, context), module.o(attend(q, k, v)))
    shuffled = context[:, ::-1]
    close(module(x, shuffled), module(x, context))


class Tempered(nnx.Module):
    """An op with a parameter of its own."""

    def __init__(self):
        self.temperature = nnx.Param(jnp.ones(()))

    def __call__(self, q, k, v):
        return attend(q * self.temperature[...], k, v, mask=masks.causal)


def test_an_op_that_is_a_module_is_trained_with_the_rest():
    module = Attention(12, 4, attend=Tempered(), rngs=nnx.Rngs(0))
    x = draw(2, 7, 12)
    gradient = nnx.grad(lambda m: (m(x) ** 2).sum())(module)
    assert abs(float(gradient["attend"]["temperature"][...])) > 1e-4
    close(module(x), oracle(x, module, lambda t, s: s <= t)[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"width": 10, "heads": 4}, "heads: got 4, expected a divisor of width 10"),
        ({"width": 12, "heads": 4, "kv_heads": 3}, "kv_heads: got 3, expected a divisor of heads"),
    ],
)
def test_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attention(**arguments, attend=causal, rngs=nnx.Rngs(0))


# --- Flax's modules around our ops

MASKS = {
    "none": None,
    "causal": np.tril(np.ones((1, 1, 7, 7), bool)),
    "padding": np.arange(7)[None, None, None] < np.array([4, 7])[:, None, None, None],
    "heads": np.random.default_rng(0).random((2, 4, 7, 7)) < 0.6,
}
for _mask in MASKS.values():
    if _mask is not None and _mask.shape[-2] == 7:
        _mask[..., 0] = True  # Flax spreads a row with nothing allowed; ours is zero


def nnx_twins(**options):
    make = lambda **more: nnx.MultiHeadAttention(
        4, 12, decode=False, rngs=nnx.Rngs(0), **options, **more
    )
    return make(), make(attention_fn=as_attention_fn(attend))


@pytest.mark.parametrize("mask", MASKS)
def test_nnx_softmax_equals_flax(mask):
    flax_own, ours = nnx_twins()
    mask = None if MASKS[mask] is None else jnp.asarray(MASKS[mask])
    x = draw(2, 7, 12)
    close(ours(x, mask=mask), flax_own(x, mask=mask))


@pytest.mark.parametrize("mask", MASKS)
def test_linen_softmax_equals_flax(mask):
    flax_own = linen.MultiHeadDotProductAttention(4)
    ours = linen.MultiHeadDotProductAttention(4, attention_fn=as_attention_fn(attend))
    mask = None if MASKS[mask] is None else jnp.asarray(MASKS[mask])
    x = draw(2, 7, 12)
    params = flax_own.init(jax.random.key(0), x)
    close(ours.apply(params, x, mask=mask), flax_own.apply(params, x, mask=mask))


def test_nnx_causal_joins_a_padding_mask_and_grouped_heads():
    flax_own, ours = nnx_twins(num_kv_heads=2)
    x, padding = draw(2, 7, 12), jnp.asarray(MASKS["padding"])
    both = jnp.asarray(MASKS["padding"] & MASKS["causal"])
    close(ours(x, mask=padding, is_causal=True), flax_own(x, mask=both))
    close(ours(x, is_causal=True), flax_own(x, is_causal=True))


def test_a_window_op_inside_both_modules():
    window = functools.partial(attend, mask=masks.window(2, 1))
    x = draw(2, 7, 12)
    i = np.arange(7)
    allowed = (i[None] >= i[:, None] - 2) & (i[None] <= i[:, None] + 1)
    allowed = jnp.asarray(allowed[None, None])
    flax_own = nnx.MultiHeadAttention(4, 12, decode=False, rngs=nnx.Rngs(0))
    ours = nnx.MultiHeadAttention(
        4, 12, decode=False, rngs=nnx.Rngs(0), attention_fn=as_attention_fn(window)
    )
    close(ours(x), flax_own(x, mask=allowed))
    flax_own = linen.MultiHeadDotProductAttention(4)
    ours = linen.MultiHeadDotProductAttention(4, attention_fn=as_attention_fn(window))
    params = flax_own.init(jax.random.key(0), x)
    close(ours.apply(params, x), flax_own.apply(params, x, mask=allowed))


def test_sown_weights_equal_flax():
    flax_own, ours = nnx_twins()
    x, mask = draw(2, 7, 12), jnp.asarray(MASKS["heads"])
    sown = []
    for module in (flax_own, ours):
        call = lambda m: m(x, mask=mask, sow_weights=True)
        _, state = nnx.capture(call, nnx.Intermediate)(module)
        (weights,) = jax.tree.leaves(state)
        sown.append(weights)
    close(sown[1], sown[0])
    flax_own = linen.MultiHeadDotProductAttention(4)
    ours = linen.MultiHeadDotProductAttention(4, attention_fn=as_attention_fn(attend))
    params = flax_own.init(jax.random.key(0), x)
    sown = [
        m.apply(params, x, mask=mask, sow_weights=True, mutable="intermediates")[1]
        for m in (flax_own, ours)
    ]
    close(*(s["intermediates"]["attention_weights"][0] for s in sown))


def test_decoding_with_the_cache_of_nnx_equals_the_whole():
    make = lambda fn: nnx.MultiHeadAttention(
        4, 12, rngs=nnx.Rngs(0), attention_fn=as_attention_fn(fn)
    )
    x = draw(2, 5, 12)
    whole = make(causal)(x, decode=False)
    module = make(attend)
    module.init_cache((2, 5, 12))
    steps = [module(x[:, t : t + 1], decode=True) for t in range(5)]
    close(jnp.concatenate(steps, axis=1), whole)


def test_other_things_flax_may_pass():
    fn = as_attention_fn(attend)
    q = draw(2, 7, 4, 3)
    assert fn(q, q, q, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    close(fn(q, q, q, precision=jax.lax.Precision.HIGHEST), attend(q, q, q))
    close(fn(q[0], q[0], q[0]), attend(q, q, q)[0])
    with pytest.raises(ValueError, match="einsum: got a replaced einsum"):
        fn(q, q, q, qk_attn_weights_einsum=jnp.einsum, attn_weights_value_einsum=jnp.einsum)
    with pytest.raises(ValueError, match="precision: got"):
        fn(q, q, q, precision=(jax.lax.Precision.HIGH, jax.lax.Precision.HIGH))
