"""Attention pooling: oracles, and the pooling layers of papers that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.softmax_core import (
    additive_pool,
    attention_pool,
    dynamic_self_attention,
    luong_concat,
)
from tests.helpers import draw, draws, exact, near, qkv
from tests.ops.plain import blend, kv, softmax, visible, weights

B, S, L, W, R = 2, 7, 3, 8, 5


def attention_pool_oracle(q, k, v, allowed=None):
    score = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)]
    return blend(weights(q, k, allowed, logit=score), v)


def additive_pool_oracle(q, k, v, w, bias, allowed=None):
    def score(b, n, i, j):
        return q[b, i, n] @ np.tanh(w.T @ k[b, j, kv(q, k, n)] + bias[b])

    return blend(weights(q, k, allowed, logit=score), v)


def dynamic_self_attention_oracle(u, rounds=2, allowed=None):
    out = np.zeros((u.shape[0], *u.shape[2:]))
    for b, n in np.ndindex(*out.shape[:2]):
        rows = u[b, visible(allowed, b, n, 0, u.shape[1]), n]
        logits = np.zeros(len(rows))
        for _ in range(rounds):
            out[b, n] = np.tanh(softmax(logits) @ rows)
            logits += rows @ out[b, n]
    return out


def label_layer(states, w_1, b_1, w_2, lengths):
    """TransICD: the logits of all labels by two matrices, padding at -1e9, one softmax each."""
    logits = np.tanh(states @ w_1 + b_1) @ w_2
    out = np.zeros((B, w_2.shape[1], states.shape[2]))
    for b, label in np.ndindex(*out.shape[:2]):
        row = np.where(np.arange(S) < lengths[b], logits[b, :, label], -1e9)
        out[b, label] = softmax(row) @ states[b]
    return out


def test_label_and_context_pooling():
    states, w_1, b_1, w_2, g, w_g = draws((B, S, W), (W, R), (R,), (R, L), (B, 4), (4, R))
    lengths, h = jnp.array([S, 4]), states[:, :, None]
    mask, labels = masks.lengths(None, lengths), w_2.T[:, None]  # (L,1,R)
    for bias in (b_1, b_1 + g @ w_g):
        got = additive_pool(labels, h, h, w_1, bias, mask=mask)[:, :, 0]
        plain = exact(bias)[None] if bias.ndim == 1 else exact(bias)[:, None]
        near(got, label_layer(*exact((states, w_1)), plain, exact(w_2), lengths))
    order = np.random.default_rng(0).permutation(S)
    whole = additive_pool(labels, h, h, w_1, b_1)
    near(additive_pool(labels, h[:, order], h[:, order], w_1, b_1), whole)


def test_features_pool_as_luong_concat():
    """Attention by features: one function of both, or the features in the bias of one query."""
    words, features, a, w, w_f, b = draws(
        (B, S, 1, W), (B, L, 1, W - 1), (R,), (W, R), (W - 1, R), (R,)
    )
    asked = jnp.concatenate([features, jnp.ones((B, L, 1, 1))], axis=-1)
    w_asked = jnp.concatenate([w_f, b[None]])
    got = luong_concat(asked, words, words, w_asked, w, a)
    for f in range(L):
        bias = features[:, f, 0] @ w_f + b
        near(additive_pool(a[None, None], words, words, w, bias)[:, 0], got[:, f])


def test_learned_queries_are_the_same_for_all_examples():
    q, k, v = qkv(B, L, 2, 4, S=S)
    near(attention_pool(q[0], k, v)[1], attention_pool(jnp.stack([q[0], q[0]]), k, v)[1])


def test_dynamic_self_attention_in_rounds_under_padding():
    u, lengths = draw(B, S, 2, 4), jnp.array([S, 4])
    spoiled = u.at[1, 4:].set(jnp.nan)
    run = jax.jit(lambda u: dynamic_self_attention(u, rounds=4, mask=masks.lengths(None, lengths)))
    seen = (np.arange(S) < np.asarray(lengths)[:, None])[:, None, None]
    near(run(spoiled), dynamic_self_attention_oracle(exact(u), 4, seen))
    with pytest.raises(ValueError, match="rounds is 0"):
        dynamic_self_attention(u, rounds=0)
