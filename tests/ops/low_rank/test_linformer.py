"""Linformer: its oracle, whose projections serve whom, padding, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.low_rank import linformer, mean_pool_projection
from attnjax.ops.softmax_core import multi_head_attention
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import blend, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def linformer_oracle(q, k, v, key_projection, value_projection):
    (B, S, K, _), N = k.shape, q.shape[2]

    def mixed(x, weight):
        each = weight[None] if weight.ndim == 2 else weight
        heads = [each[n * len(each) // N] for n in range(N)]
        out = np.zeros((B, weight.shape[-2], N, x.shape[-1]))
        for b, r, n, s in np.ndindex(*out.shape[:3], S):
            out[b, r, n] += heads[n][r, s] * x[b, s, n * K // N]
        return out

    few = mixed(k, key_projection)
    return blend(weights(q, few, None), mixed(v, value_projection))


def test_projections_of_key_heads_serve_their_query_heads():
    q, k, v = qkv(B, T, N, H, K=K)
    e, f = draw(K, 5, T, seed=3), draw(5, T, seed=4)
    each = jnp.repeat(e, N // K, axis=0)
    near(linformer(q, k, v, e, f), linformer(q, k, v, each, jnp.stack([f] * N)))
    assert not np.allclose(linformer(q, k, v, e[::-1], f), linformer(q, k, v, e, f), atol=0.1)


def test_a_longer_projection_serves_a_shorter_text():
    q, k, v = qkv(B, T, N, H, K=K)
    e, f = draw(5, T + 3, seed=3), draw(N, 5, T + 3, seed=4)
    near(linformer(q, k, v, e, f), linformer(q, k, v, e[:, :T], f[..., :T]))


def test_padding_is_zero_before_it_is_projected():
    q, k, v = qkv(B, T, N, H, K=K)
    e = mean_pool_projection(T, 3)
    visible = jnp.arange(T) < jnp.array([[T], [7]])
    spoil = lambda x: jnp.where(visible[..., None, None], x, jnp.nan)
    loss = lambda k, v: jnp.sin(linformer(q, k, v, e, e, visible=visible))
    got, pull = jax.vjp(loss, spoil(k), spoil(v))
    near(got[0], jnp.sin(linformer(q, k, v, e, e))[0])
    alone = lambda x: x[1:, :7]
    near(got[1:], jnp.sin(linformer(q[1:], alone(k), alone(v), e, e)))
    for slope in pull(got):
        assert np.isfinite(slope).all() and not np.any(slope[1, 7:]) and np.any(slope[1, :7])


def test_linformer_averages_values_and_looks_ahead():
    q, k, v = qkv(B, T, N, H, K=K)
    e = draw(5, T, seed=3)
    averaged = lambda q, k, eye: linformer(q, k, eye, e, mean_pool_projection(T, 5))
    weights = weights_of(averaged, q, k)
    near(weights.sum(-1), np.ones((B, N, T)))
    assert (weights > 0).all()
    assert not np.allclose(linformer(q, k, v, e, e), multi_head_attention(q, k, v), atol=0.1)
    later = linformer(q, k.at[:, -1].add(1.0), v, e, e)
    assert np.abs(later - linformer(q, k, v, e, e))[:, 0].max() > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"visible": masks.causal}, r"visible: causal; expected booleans \(B,S\).*causal mask"),
        ({"visible": np.tri(T, dtype=bool)}, r"visible: \(12, 12\); expected booleans"),
        ({"key_projection": draw(5, T - 1)}, r"key_projection: shape \(5, 11\).*S = 12 keys"),
        ({"value_projection": draw(3, 5, T)}, r"value_projection: shape.*K = 2, N = 4"),
    ],
)
def test_what_linformer_refuses(given, message):
    q, k, v = qkv(B, T, N, H, K=K)
    usual = {"key_projection": draw(5, T), "value_projection": draw(5, T)}
    with pytest.raises(ValueError, match=message):
        linformer(q, k, v, **(usual | given))


def test_a_mask_is_no_argument_of_linformer():
    with pytest.raises(TypeError, match="mask"):
        linformer(*qkv(B, T, N, H, K=K), draw(5, T), draw(5, T), mask=masks.causal)


def test_mean_pooling_is_a_projection():
    near(mean_pool_projection(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    p = np.asarray(mean_pool_projection(7, 3))
    assert sorted((p > 0).sum(1)) == [2, 2, 3] and ((p > 0).sum(0) == 1).all()
    near(p.sum(1), np.ones(3))
    with pytest.raises(ValueError, match="R: 5; expected an integer from 1 to S = 4"):
        mean_pool_projection(4, 5)
