"""Linformer, agents and the Perceiver: what their papers say beyond the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import attend, masks
from attnjax.core.pairwise.attend import attention_weights
from attnjax.nn import Agents, Attention, Perceiver
from attnjax.ops.low_rank import (
    agent_attention,
    fourier_features,
    linformer,
    mean_pool_projection,
    perceiver_attention,
    place_bias,
)
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.probes import cumulative_spectrum, numerical_rank

B, T, N, K, H = 2, 12, 4, 2, 8


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def qkv():
    return normal(B, T, N, H), normal(B, T, K, H, seed=1), normal(B, T, K, H, seed=2)


def close(got, want, tolerance=2e-5):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def weights_of(op, S=T):
    """The (B,N,T,S) weights of an op that is linear in v."""
    eye = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, K, S))
    return np.asarray(op(eye).transpose(0, 2, 1, 3))


# ----------------------------------------------------------------------------------- linformer


def test_projections_of_key_heads_serve_their_query_heads():
    q, k, v = qkv()
    e, f = normal(K, 5, T, seed=3), normal(5, T, seed=4)
    each = jnp.repeat(e, N // K, axis=0)
    close(linformer(q, k, v, e, f), linformer(q, k, v, each, jnp.stack([f] * N)))
    assert not np.allclose(linformer(q, k, v, e[::-1], f), linformer(q, k, v, e, f), atol=0.1)


def test_a_longer_projection_serves_a_shorter_text():
    q, k, v = qkv()
    e, f = normal(5, T + 3, seed=3), normal(N, 5, T + 3, seed=4)
    close(linformer(q, k, v, e, f), linformer(q, k, v, e[:, :T], f[..., :T]))


def test_padding_is_zero_before_it_is_projected():
    q, k, v = qkv()
    e = mean_pool_projection(T, 3)
    visible = jnp.arange(T) < jnp.array([[T], [7]])
    spoil = lambda x: jnp.where(visible[..., None, None], x, jnp.nan)
    loss = lambda k, v: jnp.sin(linformer(q, k, v, e, e, visible=visible))
    got, pull = jax.vjp(loss, spoil(k), spoil(v))
    close(got[0], jnp.sin(linformer(q, k, v, e, e))[0])
    alone = lambda x: x[1:, :7]
    close(got[1:], jnp.sin(linformer(q[1:], alone(k), alone(v), e, e)))
    for slope in pull(got):
        assert np.isfinite(slope).all() and not np.any(slope[1, 7:]) and np.any(slope[1, :7])


def test_linformer_averages_values_and_looks_ahead():
    q, k, v = qkv()
    e = normal(5, T, seed=3)
    weights = weights_of(lambda eye: linformer(q, k, eye, e, mean_pool_projection(T, 5)))
    close(weights.sum(-1), np.ones((B, N, T)))
    assert (weights > 0).all()
    assert not np.allclose(linformer(q, k, v, e, e), multi_head_attention(q, k, v), atol=0.1)
    later = linformer(q, k.at[:, -1].add(1.0), v, e, e)
    assert np.abs(later - linformer(q, k, v, e, e))[:, 0].max() > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"visible": masks.causal}, r"visible: causal; expected booleans \(B,S\).*causal mask"),
        ({"visible": np.tri(T, dtype=bool)}, r"visible: \(12, 12\); expected booleans"),
        ({"key_projection": normal(5, T - 1)}, r"key_projection: shape \(5, 11\).*S = 12 keys"),
        ({"value_projection": normal(3, 5, T)}, r"value_projection: shape.*K = 2, N = 4"),
    ],
)
def test_what_linformer_refuses(given, message):
    q, k, v = qkv()
    usual = {"key_projection": normal(5, T), "value_projection": normal(5, T)}
    with pytest.raises(ValueError, match=message):
        linformer(q, k, v, **(usual | given))


def test_a_mask_is_no_argument_of_linformer():
    with pytest.raises(TypeError, match="mask"):
        linformer(*qkv(), normal(5, T), normal(5, T), mask=masks.causal)


def test_mean_pooling_is_a_projection():
    close(mean_pool_projection(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    p = np.asarray(mean_pool_projection(7, 3))
    assert sorted((p > 0).sum(1)) == [2, 2, 3] and ((p > 0).sum(0) == 1).all()
    close(p.sum(1), np.ones(3))
    with pytest.raises(ValueError, match="R: 5; expected an integer from 1 to S = 4"):
        mean_pool_projection(4, 5)


def test_the_cumulative_spectrum_tells_low_rank():
    turn, _ = np.linalg.qr(np.asarray(normal(3, 3)))
    close(cumulative_spectrum(jnp.asarray(turn * [6.0, 3.0, 1.0])), [0.6, 0.9, 1.0])
    close(cumulative_spectrum(jnp.zeros((2, 4, 3))), np.zeros((2, 3)))
    q, k, _ = qkv()
    sharp, soft = (cumulative_spectrum(attention_weights(x, k)) for x in (5 * q, q / 5))
    assert (soft[..., 0] > sharp[..., 0]).all() and (soft[..., 0] > 0.6).all()


# -------------------------------------------------------------------------------------- agents


def test_two_stages_are_the_product_of_two_softmax_matrices_of_low_rank():
    q, k, _ = qkv()
    a, biases = normal(B, 3, N, H, seed=4), (normal(N, 3, T, seed=5), normal(N, T, 3, seed=6))
    op = lambda v: agent_attention(q, k, v, shape=(3, 4), agents=a, biases=biases)
    got = weights_of(op)
    scores = lambda x, y: np.einsum("btnh,bsnh->bnts", x, y) / np.sqrt(H)
    soften = lambda s: np.asarray(jax.nn.softmax(s, axis=-1))
    k = jnp.repeat(k, N // K, axis=2)
    want = soften(scores(q, a) + biases[1]) @ soften(scores(a, k) + biases[0])
    close(got, want)
    close(got.sum(-1), np.ones((B, N, T)))  # a constant map of values stays as it is
    assert (numerical_rank(jnp.asarray(got)) <= 3).all()
    full = weights_of(lambda v: multi_head_attention(q, k[:, :, ::2], v))
    assert (numerical_rank(jnp.asarray(full)) > 3).all()


def test_the_order_of_agents_does_not_matter():
    q, k, v = qkv()
    a, (b1, b2) = normal(B, 3, N, H, seed=4), (normal(N, 3, T, seed=5), normal(N, T, 3, seed=6))
    run = lambda a, b1, b2: agent_attention(q, k, v, shape=(12,), agents=a, biases=(b1, b2))
    order = np.array([2, 0, 1])
    close(run(a[:, order], b1[:, order], b2[..., order]), run(a, b1, b2))
    assert not np.allclose(run(a[:, order], b1, b2), run(a, b1, b2), atol=1e-2)


def test_agents_on_a_line_and_the_convolution_of_a_line():
    q, k, v = qkv()
    pooled = q.reshape(B, 3, 4, N, H).mean(2)
    shift = jnp.zeros((3, N, H)).at[0].set(1.0)  # the value of the cell before
    got = agent_attention(q, k, v, shape=(12,), agents=(3,), kernel=shift)
    want = agent_attention(q, k, v, shape=(12,), agents=pooled)
    before = jnp.pad(jnp.repeat(v, 2, axis=2), ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    close(got, want + before)


def test_place_bias_is_bilinear_in_blocks_and_adds_rows_and_columns():
    blocks, rows, columns = normal(1, 1, 2, 2), normal(1, 1, 4, seed=1), normal(1, 1, 6, seed=2)
    got = np.asarray(place_bias(blocks, rows, columns)).reshape(4, 6)
    for i, j in np.ndindex(4, 6):
        y, x = np.clip((i + 0.5) * 2 / 4 - 0.5, 0, 1), np.clip((j + 0.5) * 2 / 6 - 0.5, 0, 1)
        near = np.array([1 - y, y]) @ np.asarray(blocks[0, 0]) @ np.array([1 - x, x])
        close(got[i, j], near + rows[0, 0, i] + columns[0, 0, j])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (3, 5)}, r"shape: \(3, 5\); expected T = 12 and S = 12 cells"),
        ({"agents": (3,)}, r"agents: \(3,\); expected one number for each of \(3, 4\)"),
    ],
)
def test_grids_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        agent_attention(*qkv(), **({"shape": (3, 4), "agents": (2, 2)} | given))


def test_agents_train_in_a_layer():
    op = Agents((3, 4), 4, 3, agents=(2, 2), blocks=(2, 2), rngs=nnx.Rngs(0))
    layer = Attention(12, 4, attend=op, rngs=nnx.Rngs(1))
    x = normal(B, T, 12)
    slopes = nnx.grad(lambda layer: jnp.sum(jnp.sin(layer(x))))(layer)["attend"]
    for name in ("of_keys", "of_queries", "kernel"):
        assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(slopes[name])), name
    q, k, v = layer.project(x)
    first, second = (place_bias(*(p[...] for p in part)) for part in (op.of_keys, op.of_queries))
    biases, kernel = (first, second.swapaxes(1, 2)), op.kernel[...]
    want = agent_attention(q, k, v, shape=(3, 4), agents=(2, 2), biases=biases, kernel=kernel)
    close(layer(x), layer.o(want))


# ----------------------------------------------------------------------------------- perceiver


def test_learned_latents_are_the_same_for_all_examples():
    _, k, v = qkv()
    z = normal(5, N, H, seed=3)
    got = perceiver_attention(z, k, v)
    close(got[1], attend(z[None], k[1:], v[1:])[0])
    order = np.random.default_rng(0).permutation(T)
    close(perceiver_attention(z, k[:, order], v[:, order]), got)


def test_fourier_features_reach_the_nyquist_frequency():
    x = jax.random.uniform(jax.random.key(0), (4, 2), minval=-1.0, maxval=1.0)
    got = np.asarray(fourier_features(x, 3, (8, 20)))
    assert got.shape == (4, 2 * (2 * 3 + 1))
    for i in range(4):
        waves = [
            (np.sin(np.pi * f * c), np.cos(np.pi * f * c))
            for c, top in zip(np.asarray(x[i], np.float64), (4.0, 10.0), strict=True)
            for f in (1.0, (1.0 + top) / 2, top)
        ]
        want = [*x[i], *(s for s, _ in waves), *(c for _, c in waves)]
        close(got[i], np.array(want), 1e-4)
    with pytest.raises(ValueError, match="bands: 0; expected at least 1"):
        fourier_features(x, 0, 8)


def perceiver(rounds=3):
    return Perceiver(
        5, 3, latents=4, width=8, heads=2, layers=1, rounds=rounds, rngs=nnx.Rngs(0)
    )  # fmt: skip


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
            q, k, v = (
                y @ get(m.kernel)[:, n]
                for y, m in ((h, part.attention.q), (context, part.attention.k),
                             (context, part.attention.v))
            )  # fmt: skip
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
    model, x = perceiver(), normal(B, T, 5)
    run = nnx.jit(lambda model, x: model(x))
    close(run(model, x), by_hand(model, x), 1e-4)
    order = np.random.default_rng(0).permutation(T)
    close(run(model, x[:, order]), run(model, x))
    assert np.abs(run(model, x.at[:, 0].multiply(-1.0)) - run(model, x)).max() > 1e-3
    count = lambda m: sum(p.size for p in jax.tree.leaves(nnx.state(m, nnx.Param)))
    assert count(perceiver(2)) == count(model) > count(perceiver(1))


def test_shared_weights_gather_the_gradients_of_the_unrolled_network():
    model, x = perceiver(), normal(B, T, 5)
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
        close(second + third, both, 1e-4)
    with pytest.raises(ValueError, match="rounds: got 0, expected at least 1"):
        perceiver(0)


# ---------------------------------------------------------------------------------------- cost


def operations(fn, *shapes):
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(fn).lower(*given).cost_analysis()["flops"]


def test_cost_is_linear_in_the_tokens():
    def growth(fn, rest=lambda S: (), T=None):
        need = lambda S: operations(fn, (1, T or S, 4, 16), *[(1, S, 4, 16)] * 2, *rest(S))
        return need(256) / need(128)

    agents = lambda q, k, v, a: agent_attention(q, k, v, shape=(q.shape[1],), agents=a)
    assert growth(multi_head_attention) > 3.8
    assert growth(linformer, lambda S: ((8, S), (8, S))) < 2.1
    assert growth(agents, lambda S: ((1, 8, 4, 16),)) < 2.1
    assert growth(perceiver_attention, T=8) < 2.1
