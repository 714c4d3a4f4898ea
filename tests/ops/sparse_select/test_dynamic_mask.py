"""Dynamic masks: their oracle, the dense form with gradients, skipped blocks, ties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks, mods
from attnjax.ops.sparse_select import dynamic_mask, dynamic_mask_attention
from tests.helpers import draw, near, pairs_of, qkv, run
from tests.ops.plain import blend, both, causal, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def dynamic_mask_attention_oracle(q, k, v, w, a, window, block_size, allowed=None):
    """The blocks are those of the kernel: what is seen does not depend on them."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    delta = np.zeros((B, S, K))
    for b, j in np.ndindex(B, S):
        finite = np.where(np.isfinite(v[b, j]), v[b, j], 0.0).reshape(-1)
        delta[b, j] = np.exp(a * np.log1p(np.exp(finite @ w)))
    seen = np.zeros((B, N, T, S), bool)
    for b, n, i in np.ndindex(B, N, T):
        past = range(min(i + 1, S))
        score = lambda j, b=b, n=n: -delta[b, j, n * K // N]
        seen[b, n, i, sorted(past, key=score)[:window]] = True
    logit = lambda b, n, i, j: (
        q[b, i, n] @ k[b, j, n * K // N] / np.sqrt(H) + delta[b, j, n * K // N]
    )
    return blend(weights(q, k, both(allowed, seen), logit=logit), v)


W, A = draw(16, 2, seed=6, scale=0.3), draw(2, seed=7)


def top_keys(v, N, window):
    """Which keys are seen, (B,N,T,T)."""
    B, T = v.shape[:2]
    delta = np.exp(A * np.log1p(np.exp(np.float64(v).reshape(B, T, -1) @ W)))
    seen = np.zeros((B, N, T, T), bool)
    for b, n, i in np.ndindex(B, N, T):
        seen[b, n, i, np.argsort(-delta[b, : i + 1, n * 2 // N])[:window]] = True
    return seen


def masked_dense(q, k, v, w, seen):
    delta = jnp.exp(A * jax.nn.softplus(v.reshape(*v.shape[:2], -1) @ w))
    bias = mods.mod(jnp.add, key=delta)
    return attend(q, k, v, mods=(bias,), mask=masks.array(seen), impl="dense")


def test_dynamic_masks_by_blocks_equal_the_masked_dense_form_with_gradients():
    q, k, v = qkv(B, T, 2, H, K=K)
    seen = top_keys(v, 2, 3)
    assert (seen.sum(-1) == np.minimum(np.arange(12) + 1, 3)).all()
    of = functools.partial(dynamic_mask_attention, block_size=4)

    @functools.partial(jax.jit, static_argnums=0)
    def slopes(f, q, v, w):
        both = lambda *x: (jnp.sin(out := f(*x)).sum(), out)
        return jax.grad(both, (0, 1, 2), has_aux=True)(q, v, w)

    got = slopes(lambda q, v, w: of(q, k, v, w, A, window=3, impl="blockwise"), q, v, W)
    want = slopes(lambda q, v, w: masked_dense(q, k, v, w, seen), q, v, W)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4), got, want)
    assert np.any(got[0][2]), "gradients reach w"
    full = run(masked_dense, q, k, v, W, causal(12, 12))  # a key bias, and no key left out
    near(run(of, q, k, v, W, A, window=12), full)
    assert not np.allclose(got[1], full, atol=0.01)


def test_blocks_in_which_a_dynamic_mask_shows_nothing_are_skipped(monkeypatch):
    T, size, window = 30, 4, 3
    q, k, v = draw(2, T, 2, 8), draw(2, T, 2, 8), draw(2, T, 2, 8, seed=8)
    chosen = []
    monkeypatch.setattr(dynamic_mask, "attend", lambda q, k, v, blocks, **_: chosen.append(blocks))
    dynamic_mask_attention(q, k, v, W, A, window=window, block_size=size)
    seen = top_keys(v, 2, window)
    for b, n in np.ndindex(2, 2):
        pairs = {(i // size, j // size) for i, j in np.argwhere(seen[b, n])}
        got = pairs_of(chosen[0])[b][n]
        assert got == pairs | {(u, u) for u in range(8)}
        assert len(got) < 30, "not all 36 of causal attention"


def test_equal_keys_of_a_dynamic_mask_are_kept_from_the_first_on():
    T, window = 7, 3
    q, v = draw(1, T, 1, T), np.eye(T, dtype=np.float32)[None, :, None]
    out = run(
        dynamic_mask_attention, q, q, v, np.ones((T, 1), np.float32),
        np.zeros(1, np.float32), window=window, block_size=2,
    )  # fmt: skip
    want = np.tril(np.ones((T, T))) * (np.arange(T) < window)
    assert ((np.asarray(out)[0, :, 0] > 0) == want).all()


@pytest.mark.parametrize(
    ("w", "window", "told"),
    [
        (W[:8], 4, r"\(8, 2\), 4; expected \(K\*D,K\) = \(16, 2\), at least 1"),
        (W, 0, r"\(16, 2\), 0; expected .* at least 1"),
    ],
)
def test_a_dynamic_mask_refuses_what_does_not_fit(w, window, told):
    with pytest.raises(ValueError, match=told):
        dynamic_mask_attention(*qkv(B, T, N, H, K=K), w, A, window=window)
