"""SeerAttention: its oracles, pooled queries, what its loss says, that its gate learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attnjax import masks, nn
from attnjax.core.blocks import block_maps, select
from attnjax.core.positions import rotary
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import seer_attention
from attnjax.ops.sparse_select.seer import keeping_own
from tests.helpers import draw, exact, near, qkv, run
from tests.ops.plain import blend, both, causal, cut_tail, softmax, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def _rotated(x, position, base):
    """One vector turned as complex numbers, the second half imaginary."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def _rotated_tokens(x, base):
    out = np.zeros_like(x)
    for b, t, n in np.ndindex(x.shape[:3]):
        out[b, t, n] = _rotated(x[b, t, n], t, base)
    return out


def _gate(q, k, w_q, w_k, blocks, base, b, n, u):
    """{block: p_ub} over the blocks that begin before block u of the queries ends."""
    K, queries = k.shape[2], cut_tail(q.shape[1], blocks[0])[u]
    mean_q = sum(q[b, i, n] for i in queries) / len(queries)
    g = _rotated(mean_q @ w_q[n], queries[0], base)
    scores = {}
    for c, keys in enumerate(cut_tail(k.shape[1], blocks[1])):
        if keys[0] <= queries[-1]:
            kv = n * K // q.shape[2]
            inside = np.array([k[b, j, kv] for j in keys])
            features = np.concatenate([inside.max(0), inside.min(0), inside.mean(0)])
            h = _rotated(features @ w_k[kv * len(w_k) // K], keys[0], base)
            scores[c] = g @ h / np.sqrt(len(g))
    return dict(zip(scores, softmax(np.array(list(scores.values()))), strict=True))


def _taken(share, choose):
    """The chosen blocks of a row, by its p_ub."""
    ranked = sorted(share, key=share.get, reverse=True)
    if "k" in choose.keywords:
        return ranked[: choose.keywords["k"]]
    return [c for c in ranked if np.log(share[c]) >= choose.keywords["least"]]


def seer_attention_oracle(q, k, v, w_q, w_k, blocks, choose, allowed=None):
    (B, T, N, _), S, base = q.shape, k.shape[1], 10000.0
    seen = np.zeros((B, N, T, S), bool)
    for b, n in np.ndindex(B, N):
        for u, queries in enumerate(cut_tail(T, blocks[0])):
            taken = _taken(_gate(q, k, w_q, w_k, blocks, base, b, n, u), choose)
            for i in queries:
                for j in range(min(i + 1, S)):
                    seen[b, n, i, j] = j // blocks[1] in taken
    q, k = _rotated_tokens(q, base), _rotated_tokens(k, base)
    return blend(weights(q, k, both(allowed, seen)), v)


def seer_r_attention_oracle(q, k, v, w_q, w_k, block, choose, allowed=None):
    """Gates of key heads, over the queries of their group; the own block first."""
    (B, T, N, H), (S, K), base = q.shape, k.shape[1:3], 10000.0
    together = q.reshape(B, T, K, N // K * H)
    seen = np.zeros((B, N, T, S), bool)
    for b, n, t in np.ndindex(B, N, T):
        m, own = n * K // N, t // block
        share = _gate(together, k, w_q, w_k, (1, block), base, b, m, t)
        share[own] = np.inf  # a block behind the last key takes no place
        taken = _taken({c: p for c, p in share.items() if c * block < S}, choose)
        for j in range(min(t + 1, S)):
            seen[b, n, t, j] = j // block in taken
    q, k = _rotated_tokens(q, base), _rotated_tokens(k, base)
    return blend(weights(q, k, both(allowed, seen)), v)


def _seer_truth(q, k, blocks, base, allowed=None):
    """The dense map, its largest weight in each block, rows to sum one: (B,N,U,n)."""
    (B, T, N, _), S = q.shape, k.shape[1]
    seen = both(allowed, causal(T, S))
    dense = weights(_rotated_tokens(q, base), _rotated_tokens(k, base), seen)
    rows, columns = cut_tail(T, blocks[0]), cut_tail(S, blocks[1])
    peak = np.zeros((B, N, len(rows), len(columns)))
    for b, n, u, c in np.ndindex(peak.shape):
        peak[b, n, u, c] = max(dense[b, n, i, j] for i in rows[u] for j in columns[c])
    return peak / peak.sum(-1, keepdims=True)


def seer_loss_oracle(q, k, w_q, w_k, blocks, allowed=None):
    base, total = 10000.0, 0.0
    truth = _seer_truth(q, k, blocks, base, allowed)
    for b, n, u in np.ndindex(truth.shape[:3]):
        share = _gate(q, k, w_q, w_k, blocks, base, b, n, u)
        total += sum(truth[b, n, u, c] * np.log(truth[b, n, u, c] / share[c]) for c in share)
    return total / np.prod(truth.shape[:3])


W_Q, W_K = draw(4, 8, 6, seed=3), draw(2, 24, 6, seed=4, scale=0.5)


@pytest.mark.parametrize(
    ("blocks", "choose"),
    [
        ((3, 3), functools.partial(select.top_k, k=2)),
        ((2, 4), functools.partial(select.threshold, least=np.log(0.3))),
    ],
)
def test_seer_of_pooled_queries_equals_the_formula(blocks, choose):
    q, k, v = qkv(B, 11, N, H, K=K)
    got = run(seer_attention, q, k, v, W_Q, W_K, blocks=blocks, choose=choose)
    near(got, seer_attention_oracle(*exact((q, k, v, W_Q, W_K)), blocks, choose))
    turned = [np.asarray(rotary(x, np.arange(11))) for x in (q, k)]
    assert not np.allclose(got, run(multi_head_attention, *turned, v, mask=masks.causal), atol=0.01)


@pytest.mark.parametrize(
    ("shares", "choose", "wanted", "with_own"),
    [
        ((0.9, 0.05, 0.05), functools.partial(select.threshold, least=np.log(0.2)), {0}, {0, 2}),
        ((0.5, 0.4, 0.1), functools.partial(select.top_k, k=2), {0, 1}, {0, 2}),
    ],
)
def test_the_own_block_has_no_place_of_its_own(shares, choose, wanted, with_own):
    """The row of the third block, whose p is given; the example of the released code."""
    scores = jnp.log(jnp.array(shares))[None, None, None]
    scores = jnp.concatenate([jnp.zeros((1, 2, 1, 3)), scores], axis=1)
    for how, want in ((choose, wanted), (keeping_own(choose), with_own)):
        chosen = how(scores, block_q=1, block_k=1)
        row = chosen.indices[0, 2, 0], chosen.valid[0, 2, 0]
        assert {int(c) for c, ok in zip(*row, strict=True) if ok} == want


def test_seer_without_rotary_positions_and_all_blocks_is_causal_attention():
    q, k, v = qkv(B, T, N, H, K=K)
    everything = functools.partial(select.threshold, least=-1e9)
    got = run(seer_attention, q, k, v, W_Q, W_K, blocks=(3, 3), choose=everything, base=None)
    near(got, run(multi_head_attention, q, k, v, mask=masks.causal))


def gate_loss(q, k, w_q, w_k):
    return nn.seer_loss(q, k, w_q, w_k, blocks=(3, 3))


def test_the_seer_loss_is_the_divergence_from_the_pooled_dense_map():
    q, k, _ = qkv(B, 11, N, H, K=K)
    truth = _seer_truth(*exact((q, k)), (3, 3), 10000.0)
    turned = [np.asarray(rotary(x, np.arange(11))) for x in (q, k)]
    peak = np.asarray(block_maps.block_peak(*turned, 3, 3, mask=masks.causal))  # without the map
    near(np.swapaxes(peak / peak.sum(-1, keepdims=True), 1, 2), truth)
    want = seer_loss_oracle(*exact((q, k, W_Q, W_K)), (3, 3))
    loss, slopes = jax.jit(jax.value_and_grad(gate_loss, argnums=(0, 1, 2, 3)))(q, k, W_Q, W_K)
    near(loss, want)
    assert loss > 0.01
    assert not np.any(slopes[0]) and not np.any(slopes[1]), "only the gate learns"
    assert np.any(slopes[2]) and np.any(slopes[3])
    # Without queries the map is uniform, row by row, and so is the gate.
    assert abs(jax.jit(gate_loss)(0 * q, k, W_Q, W_K)) < 1e-6


def test_the_seer_loss_leaves_padding_out():
    q, k, _ = qkv(B, 9, N, H, K=K)
    padded = [np.concatenate([x, np.full_like(x[:, :4], np.nan)], axis=1) for x in (q, k)]
    lengths = np.array([9, 9])
    masked = functools.partial(nn.seer_loss, blocks=(3, 3), mask=masks.lengths(lengths, lengths))
    near(jax.jit(masked)(*padded, W_Q, W_K), jax.jit(gate_loss)(q, k, W_Q, W_K), 1e-6)


def test_a_seer_gate_learns_what_attention_looks_at():
    sizes = {"kv_heads": 2, "gate_width": 8, "blocks": (1, 4)}
    two = functools.partial(select.top_k, k=2)
    gate = nn.SeerGate(4, 8, **sizes, choose=two, rngs=nnx.Rngs(0))
    layer = nn.Attention(16, 4, kv_heads=2, head_width=8, attend=gate, rngs=nnx.Rngs(1))
    x = jnp.asarray(draw(2, 16, 16, scale=3.0))
    graph, params = nnx.split(layer)
    q, k, v = layer.project(x)
    turned = [rotary(y, np.arange(16)) for y in (q, k)]
    mass = block_maps.block_mass(*turned, 1, 4, mask=masks.causal)

    @jax.jit
    def recall(params):
        """The share of attention's weight that falls on the chosen blocks."""
        chosen = nnx.merge(graph, params).attend.selection(q, k)
        return (jnp.take_along_axis(mass, chosen.indices, -1) * chosen.valid).sum(-1).mean()

    def loss(params):
        layer = nnx.merge(graph, params)
        return layer.attend.loss(*layer.project(x)[:2])

    @jax.jit
    def train(params):
        rule = optax.adam(0.02)

        def step(carry, _):
            params, state = carry
            value, slope = jax.value_and_grad(loss)(params)
            update, state = rule.update(slope, state)
            return (optax.apply_updates(params, update), state), (value, slope)

        return jax.lax.scan(step, (params, rule.init(params)), length=120)

    (trained, _), (values, slopes) = train(params)
    assert values[-1] < 0.5 * values[0]
    assert not np.any(slopes["q"]["kernel"][...]) and np.any(slopes["attend"]["w_q"][...])
    assert recall(trained) > recall(params) + 0.02


def test_a_seer_gate_attends_as_seer_attention():
    q, k, v = qkv(B, T, N, H, K=K)
    gate = nn.SeerGate(4, 8, kv_heads=2, gate_width=6, blocks=(3, 3), rngs=nnx.Rngs(0))
    gate.choose = functools.partial(select.top_k, k=2)
    weights = [x[...] for x in (gate.w_q, gate.w_k)]
    assert [x.shape for x in weights] == [(4, 8, 6), (2, 24, 6)]
    got = nnx.jit(lambda gate: gate(q, k, v))(gate)
    near(got, seer_attention_oracle(*exact((q, k, v, *weights)), (3, 3), gate.choose))


def test_seer_refuses_what_does_not_fit():
    q, k, v = qkv(B, T, N, H, K=K)
    with pytest.raises(ValueError, match=r"blocks: \(3, 4\); expected the first to divide"):
        seer_attention(q, k, v, W_Q, W_K, blocks=(3, 4))
    with pytest.raises(ValueError, match="kv_heads: got 3, expected a divisor of heads 4"):
        nn.SeerGate(4, 8, kv_heads=3, rngs=nnx.Rngs(0))
