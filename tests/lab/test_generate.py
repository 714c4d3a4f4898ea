"""Generation: what the parallel model says, token by token, from every cache and state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import attend, decode, lab, masks, mods, nn
from attnjax.core.positions import rotary
from attnjax.decode import policies
from tests.helpers import near, sample

causal = functools.partial(attend, mask=masks.causal)
ALIBI = decode.Causal(mods=(mods.alibi(mods.alibi_slopes(2)),), mask=masks.window(6))
PROMPTS = np.random.default_rng(0).integers(0, 20, (2, 5))
MORE = 4


def tiny(mixer, positions="none", depth=2, **more):
    shape = lab.Shape(width=16, depth=depth, heads=2, length=12, positions=positions)
    return lab.TinyLM(shape, mixer, vocab=20, rngs=nnx.Rngs(0), **more)


MODELS = {
    "alibi": lambda: tiny(ALIBI, gate=nn.HeadGate),
    "rotary": lambda: tiny(decode.Causal(turn=rotary)),
    "learned": lambda: tiny(causal, "learned"),
    "any op": lambda: tiny(lambda q, k, v: causal(q, k, v)),
    "hybrid": lambda: tiny([nn.recipes.gated_delta_net, ALIBI]),
    "recurrent": lambda: tiny(nn.recipes.mamba2),
}


@functools.partial(jax.jit, static_argnums=0)
def logits_of(graph, params, text):
    return nnx.merge(graph, params)(text)[0]


def greedily(model, text, ends):
    """Whether each token behind the prompts is what the parallel model finds likeliest."""
    logits = np.asarray(logits_of(*nnx.split(model), jnp.asarray(text)))
    behind = np.arange(text.shape[1] - 1)[None] + 1 >= np.asarray(ends)[:, None]
    return (logits[:, :-1].argmax(-1) == text[:, 1:])[behind]


@pytest.mark.parametrize("name", sample(["learned", "any op", "hybrid"], MODELS, pytest.mark.slow))
def test_greedy_is_the_argmax_of_the_parallel_model(name):
    model, ends = MODELS[name](), [5, 3]
    text = lab.generate(model, PROMPTS, MORE, lengths=ends)
    assert text.shape == (2, 9) and text.dtype == np.int32
    for row, prompt, end in zip(text, PROMPTS, ends, strict=True):
        np.testing.assert_array_equal(row[:end], prompt[:end])
    right = greedily(model, text, ends)
    assert right.all() and right.size == 10


@pytest.mark.parametrize("name", sample([], MODELS, pytest.mark.slow))
def test_steps_are_the_whole_model(name):
    model = MODELS[name]()
    graph, params = nnx.split(model)
    text = jnp.asarray(np.random.default_rng(1).integers(0, 20, (2, 8)))

    @jax.jit
    def parts(params, text):
        model = nnx.merge(graph, params)
        state, outs = model.start(2, 8), []
        for part in (text[:, :5], text[:, 5:6], text[:, 6:]):
            logits, state = model.step(part, state)
            outs.append(logits)
        return jnp.concatenate(outs, axis=1)

    near(parts(params, text), logits_of(graph, params, text), 1e-4)


def test_caches_and_policies_of_the_window_change_nothing():
    """All that the model can see is kept, by a ring, a policy, in pages, of each layer its own."""
    model = MODELS["alibi"]()
    want = lab.generate(model, PROMPTS, MORE)
    ring = lambda B, length, K, H: decode.Window.empty(B, 7, K, H, chunk=5)
    pages = lambda B, length, K, H: decode.Paged.empty(B, length, K, H, pages=12, page=2)
    np.testing.assert_array_equal(lab.generate(model, PROMPTS, MORE, caches=[ring, pages]), want)
    latest = policies.streaming_llm(7, sinks=0)
    np.testing.assert_array_equal(lab.generate(model, PROMPTS, MORE, policies=latest), want)


def test_a_policy_drops_in_the_layers_that_have_caches():
    model = MODELS["hybrid"]()
    text = lab.generate(model, PROMPTS, 6, policies=[None, policies.h2o(3)])
    assert text.shape == (2, 11)
    graph, params = nnx.split(model)

    @jax.jit
    def prompt(params, text):
        model = nnx.merge(graph, params)
        state = model.start(2, 12, lambda *sizes: decode.Dense.empty(*sizes, heads=2))
        return model.step(text, state, policies.h2o(3))[1]

    state = prompt(params, jnp.asarray(PROMPTS))
    assert (np.asarray(state.caches[1].positions >= 0).sum(1) == 3).all()
    with pytest.raises(ValueError, match="got 3 values for layers, expected one for all, or 2"):
        lab.generate(model, PROMPTS, 1, policies=[None] * 3)


def test_chance_is_the_seeds():
    model = MODELS["alibi"]()
    hot = lab.Sampling(temperature=5.0, top_p=0.9)
    draw = lambda seed: lab.generate(model, PROMPTS, MORE, sampling=hot, seed=seed)
    one = draw(0)
    np.testing.assert_array_equal(draw(0), one)
    assert (draw(1) != one).any()


def test_top_p_takes_the_fewest_tokens_that_reach_it():
    p = np.array([[0.5, 0.3, 0.15, 0.05]])
    logits = jnp.asarray(np.log(p))
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = lambda **how: jax.vmap(lambda k: lab.Sampling(**how)(logits, k)[0])(keys)
    assert set(np.asarray(drawn(temperature=1.0, top_p=0.75))) == {0, 1}
    assert set(np.asarray(drawn(temperature=1.0, top_p=0.81))) == {0, 1, 2}
    count = np.bincount(drawn(temperature=1.0), minlength=4) / 500
    np.testing.assert_allclose(count, p[0], atol=0.08)
    assert (np.asarray(drawn(temperature=0.0)) == 0).all()
    with pytest.raises(ValueError, match="top_p are 1.0, 0"):
        lab.Sampling(1.0, 0)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match=r"lengths are \[5, 6\], expected \(B,\) = \(2,\) from 1"):
        lab.generate(MODELS["alibi"](), PROMPTS, 1, lengths=[5, 6])
