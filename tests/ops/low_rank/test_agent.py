"""Agent attention: its oracle, its two matrices, grids of agents, biases, cost, a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.nn import Agents, Attention
from attnjax.ops.low_rank import agent_attention, linformer, perceiver_attention, place_bias
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.probes import numerical_rank
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import softmax

B, T, N, K, H = 2, 12, 4, 2, 8


def agent_attention_oracle(q, k, v, shape, agents, biases, kernel):
    (B, T, N, H), (S, K, D) = q.shape, v.shape[1:]
    (rows, columns), (r, c) = shape, agents
    cells = list(np.ndindex(rows, columns))
    # the cells of each agent: run i of r takes the rows y with floor(y r / rows) = i
    agent_of = [(y * r // rows, x * c // columns) for y, x in cells]
    pooled = [[t for t in range(T) if agent_of[t] == agent] for agent in np.ndindex(r, c)]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        g = n * K // N
        tokens = [np.mean([q[b, t, n] for t in of], axis=0) for of in pooled]
        read = []
        for m, a in enumerate(tokens):
            logits = [a @ k[b, s, g] / np.sqrt(H) + biases[0][n, m, s] for s in range(S)]
            w = softmax(np.array(logits))
            read.append(sum(w[s] * v[b, s, g] for s in range(S)))
        for t, (y, x) in enumerate(cells):
            logits = [
                q[b, t, n] @ a / np.sqrt(H) + biases[1][n, t, m] for m, a in enumerate(tokens)
            ]
            out[b, t, n] = sum(w * o for w, o in zip(softmax(np.array(logits)), read, strict=True))
            for dy, dx in np.ndindex(3, 3):
                there = y + dy - 1, x + dx - 1
                if there in cells:
                    out[b, t, n] += kernel[dy, dx, n] * v[b, cells.index(there), g]
    return out


def test_two_stages_are_the_product_of_two_softmax_matrices_of_low_rank():
    q, k, _ = qkv(B, T, N, H, K=K)
    a, biases = draw(B, 3, N, H, seed=4), (draw(N, 3, T, seed=5), draw(N, T, 3, seed=6))
    got = weights_of(agent_attention, q, k, shape=(3, 4), agents=a, biases=biases)
    scores = lambda x, y: np.einsum("btnh,bsnh->bnts", x, y) / np.sqrt(H)
    soften = lambda s: np.asarray(jax.nn.softmax(s, axis=-1))
    k = jnp.repeat(k, N // K, axis=2)
    want = soften(scores(q, a) + biases[1]) @ soften(scores(a, k) + biases[0])
    near(got, want)
    near(got.sum(-1), np.ones((B, N, T)))  # a constant map of values stays as it is
    assert (numerical_rank(jnp.asarray(got)) <= 3).all()
    full = weights_of(multi_head_attention, q, k)
    assert (numerical_rank(jnp.asarray(full)) > 3).all()


def test_the_order_of_agents_does_not_matter():
    q, k, v = qkv(B, T, N, H, K=K)
    a, (b1, b2) = draw(B, 3, N, H, seed=4), (draw(N, 3, T, seed=5), draw(N, T, 3, seed=6))
    run = lambda a, b1, b2: agent_attention(q, k, v, shape=(12,), agents=a, biases=(b1, b2))
    order = np.array([2, 0, 1])
    near(run(a[:, order], b1[:, order], b2[..., order]), run(a, b1, b2))
    assert not np.allclose(run(a[:, order], b1, b2), run(a, b1, b2), atol=1e-2)


def test_agents_on_a_line_and_the_convolution_of_a_line():
    q, k, v = qkv(B, T, N, H, K=K)
    pooled = q.reshape(B, 3, 4, N, H).mean(2)
    shift = jnp.zeros((3, N, H)).at[0].set(1.0)  # the value of the cell before
    got = agent_attention(q, k, v, shape=(12,), agents=(3,), kernel=shift)
    want = agent_attention(q, k, v, shape=(12,), agents=pooled)
    before = jnp.pad(jnp.repeat(v, 2, axis=2), ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    near(got, want + before)


def test_place_bias_is_bilinear_in_blocks_and_adds_rows_and_columns():
    blocks, rows, columns = draw(1, 1, 2, 2), draw(1, 1, 4, seed=1), draw(1, 1, 6, seed=2)
    got = np.asarray(place_bias(blocks, rows, columns)).reshape(4, 6)
    for i, j in np.ndindex(4, 6):
        y, x = np.clip((i + 0.5) * 2 / 4 - 0.5, 0, 1), np.clip((j + 0.5) * 2 / 6 - 0.5, 0, 1)
        inside = np.array([1 - y, y]) @ np.asarray(blocks[0, 0]) @ np.array([1 - x, x])
        near(got[i, j], inside + rows[0, 0, i] + columns[0, 0, j])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (3, 5)}, r"shape: \(3, 5\); expected T = 12 and S = 12 cells"),
        ({"agents": (3,)}, r"agents: \(3,\); expected one number for each of \(3, 4\)"),
        ({"agents": (7, 7)}, r"agents: \(7, 7\); expected no more along an axis than the \(3, 4\)"),
    ],
)
def test_grids_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        agent_attention(*qkv(B, T, N, H, K=K), **({"shape": (3, 4), "agents": (2, 2)} | given))


def test_agents_train_in_a_layer():
    op = Agents((3, 4), 4, 3, agents=(2, 2), blocks=(2, 2), rngs=nnx.Rngs(0))
    layer = Attention(12, 4, attend=op, rngs=nnx.Rngs(1))
    x = draw(B, T, 12)
    slopes = nnx.grad(lambda layer: jnp.sum(jnp.sin(layer(x))))(layer)["attend"]
    for name in ("of_keys", "of_queries", "kernel"):
        assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(slopes[name])), name
    q, k, v = layer.project(x)
    first, second = (place_bias(*(p[...] for p in part)) for part in (op.of_keys, op.of_queries))
    biases, kernel = (first, second.swapaxes(1, 2)), op.kernel[...]
    want = agent_attention(q, k, v, shape=(3, 4), agents=(2, 2), biases=biases, kernel=kernel)
    near(layer(x), layer.o(want))


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
