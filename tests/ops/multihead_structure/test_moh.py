"""Mixture of heads: oracles, gates that add up, and experts of which each is the whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.multihead_structure import (
    mixture_of_heads,
    moh_balance_loss,
    moh_gates,
    moh_norm_gates,
    route,
)
from attnjax.ops.softmax_core import multi_head_attention
from tests.helpers import draw, draws, near, qkv
from tests.ops.plain import blend, softmax, weights

X, SHARED, ROUTED, MIX = draws((2, 5, 6), (6, 2), (6, 4), (6, 2))


def mixture_of_heads_oracle(q, k, v, gates, allowed=None):
    return blend(weights(q, k, allowed), v) * gates[..., None]


def moh_gates_oracle(x, shared, routed, mix, top_k):
    S, E = shared.shape[1], routed.shape[1]
    out = np.zeros((*x.shape[:2], S + E))
    for b, t in np.ndindex(x.shape[:2]):
        a = 2 * softmax(x[b, t] @ mix)
        out[b, t, :S] = a[0] * S * softmax(x[b, t] @ shared)
        p = softmax(x[b, t] @ routed)
        best = np.argsort(-p)[:top_k]
        out[b, t, S + best] = a[1] * top_k * p[best] / p[best].sum()
    return out


def moh_norm_gates_oracle(queries, shared, top_k):
    out = np.ones(queries.shape[:3])
    for b, t in np.ndindex(queries.shape[:2]):
        order = np.argsort(-np.linalg.norm(queries[b, t, shared:], axis=-1))
        out[b, t, shared + order[top_k:]] = 0.0
    return out


def moh_balance_loss_oracle(logits, top_k):
    E, rows = logits.shape[-1], logits.reshape(-1, logits.shape[-1])
    mean, share = np.zeros(E), np.zeros(E)
    for row in rows:
        mean += softmax(row) / len(rows)
        share[np.argsort(-row)[:top_k]] += 1 / len(rows)
    return E * (mean * share).sum()


def test_gates_of_a_token_add_up_and_one_that_is_closed_has_no_gradient():
    gates = moh_gates(X, SHARED, ROUTED, MIX, top_k=3)
    a = 2 * jax.nn.softmax(X @ MIX)
    near(gates.sum(-1), a[..., 0] * 2 + a[..., 1] * 3)
    assert ((gates[..., 2:] == 0).sum(-1) == 1).all()
    q, k, v = qkv(2, 5, 6, 4)
    pull = jax.grad(lambda q: (mixture_of_heads(q, k, v, gates) ** 2).sum())(q)
    closed = np.asarray(gates == 0)
    assert not np.any(np.asarray(pull)[closed]) and np.all(np.asarray(pull)[~closed].any(-1))


def test_routed_heads_may_change_places_and_one_kind_alone_has_no_mix():
    order = np.array([2, 0, 3, 1])
    gates = moh_gates(X, SHARED, ROUTED, MIX, top_k=2)
    moved = moh_gates(X, SHARED, ROUTED[:, order], MIX, top_k=2)
    near(moved[..., 2:], gates[..., 2:][..., order])
    near(moh_gates(X, SHARED[:, :0], ROUTED, MIX, top_k=2).sum(-1), np.full((2, 5), 2.0))
    near(moh_gates(X, SHARED, ROUTED[:, :0], MIX, top_k=2).sum(-1), np.full((2, 5), 2.0))


def test_norm_gates_do_not_see_the_length_of_a_token():
    x = draw(2, 5, 6, 4)
    near(moh_norm_gates(7 * x, shared=2, top_k=2), moh_norm_gates(x, shared=2, top_k=2))


def test_the_balance_loss_is_e_where_the_same_experts_are_always_chosen():
    logits = jnp.zeros((2, 3, 4)).at[..., 1].set(30.0)
    near(moh_balance_loss(logits, top_k=1), 4.0)


def test_equal_experts_are_the_model_that_they_are_copies_of():
    """BAM: three experts of two heads, keys and values of their own."""
    q, k, v = (jnp.concatenate([x] * 3, axis=2) for x in qkv(2, 5, 2, 4))
    g = jax.nn.softmax(draw(2, 5, 3), axis=-1)
    out = mixture_of_heads(q, k, v, jnp.repeat(g, 2, axis=-1)).reshape(2, 5, 3, 2, 4)
    near(out.sum(2), multi_head_attention(*(x[:, :, :2] for x in (q, k, v))))


def test_how_many_experts_there_are_to_choose():
    for top_k in (0, 5):
        with pytest.raises(ValueError, match=f"top_k: {top_k}; expected 1 to E = 4"):
            route(draw(2, 4), top_k)
