"""Perceiver: the oracle, learned latents, Fourier features, and the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import attend
from attnjax.nn import Perceiver
from attnjax.ops.low_rank import fourier_features, perceiver_attention
from tests.helpers import draw, near, qkv
from tests.ops.plain import blend, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def perceiver_attention_oracle(q, k, v, allowed=None):
    return blend(weights(q, k, allowed), v)


def test_learned_latents_are_the_same_for_all_examples():
    _, k, v = qkv(B, T, N, H, K=K)
    z = draw(5, N, H, seed=3)
    got = perceiver_attention(z, k, v)
    near(got[1], attend(z[None], k[1:], v[1:])[0])
    order = np.random.default_rng(0).permutation(T)
    near(perceiver_attention(z, k[:, order], v[:, order]), got)


def test_fourier_features_reach_the_nyquist_frequency():
    x = jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, (4, 2)), jnp.float32)
    got = np.asarray(fourier_features(x, 3, (8, 20)))
    assert got.shape == (4, 2 * (2 * 3 + 1))
    for i in range(4):
        waves = [
            (np.sin(np.pi * f * c), np.cos(np.pi * f * c))
            for c, top in zip(np.asarray(x[i], np.float64), (4.0, 10.0), strict=True)
            for f in (1.0, (1.0 + top) / 2, top)
        ]
        want = [*x[i], *(s for s, _ in waves), *(c for _, c in waves)]
        near(got[i], np.array(want), 1e-4)
    with pytest.raises(ValueError, match="bands: 0; expected at least 1"):
        fourier_features(x, 0, 8)


def perceiver(rounds=3):
    sizes = {"latents": 4, "width": 8, "heads": 2, "layers": 1}
    return Perceiver(5, 3, **sizes, rounds=rounds, rngs=nnx.Rngs(0))


def by_hand(model, x):
    """The network in NumPy float64, off the model's own weights."""
    get = lambda p: np.asarray(p[...], np.float64)

    def norm(layer, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * get(layer.scale) + get(layer.bias)

    def step(part, z, x=None):
        h = norm(part.norm, z)
        context = h if x is None else norm(part.input_norm, x)
        out = np.zeros_like(z)
        for n in range(part.attention.q.out_features[0]):
            q = h @ get(part.attention.q.kernel)[:, n]
            k = context @ get(part.attention.k.kernel)[:, n]
            v = context @ get(part.attention.v.kernel)[:, n]
            w = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
            out += w / w.sum(-1, keepdims=True) @ v @ get(part.attention.o.kernel)[n]
        z = z + out
        h = norm(part.mlp_norm, z) @ get(part.up.kernel) + get(part.up.bias)
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        return z + h @ get(part.down.kernel) + get(part.down.bias)

    x = np.asarray(x, np.float64)
    z = np.repeat(get(model.latents)[None], len(x), 0)
    for i in range(model.rounds):
        read, think = model.others if i else model.first
        z = step(think, step(read, z, x))
    return z.mean(1) @ get(model.out.kernel) + get(model.out.bias)


def test_the_perceiver_is_a_recurrent_network_that_ignores_order():
    model, x = perceiver(), draw(B, T, 5)
    run = nnx.jit(lambda model, x: model(x))
    near(run(model, x), by_hand(model, x), 1e-4)
    order = np.random.default_rng(0).permutation(T)
    near(run(model, x[:, order]), run(model, x))
    assert np.abs(run(model, x.at[:, 0].multiply(-1.0)) - run(model, x)).max() > 1e-3
    count = lambda m: sum(p.size for p in jax.tree.leaves(nnx.state(m, nnx.Param)))
    assert count(perceiver(2)) == count(model) > count(perceiver(1))


def test_shared_weights_gather_the_gradients_of_the_unrolled_network():
    model, x = perceiver(), draw(B, T, 5)
    graph, shared = nnx.split(model.others)

    def unrolled(second, third):
        z = jnp.broadcast_to(model.latents[...], (B, *model.latents.shape))
        for read, think in (model.first, nnx.merge(graph, second), nnx.merge(graph, third)):
            z = think(read(z, x))
        return jnp.sum(jnp.sin(model.out(z.mean(1))))

    apart = jax.jit(jax.grad(unrolled, argnums=(0, 1)))(shared, shared)
    whole = nnx.jit(nnx.grad(lambda model: jnp.sum(jnp.sin(model(x)))))(model)["others"]
    parts = zip(*(jax.tree.leaves(g) for g in (*apart, whole)), strict=True)
    for second, third, both in parts:
        near(second + third, both, 1e-4)
    with pytest.raises(ValueError, match="rounds: got 0, expected at least 1"):
        perceiver(0)
