"""DeepSeek sparse attention: oracles; one selection for all heads; the future chooses nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.sparse_select import deepseek_sparse_attention, index_scores, indexer_loss
from tests.helpers import near, run, weights_of
from tests.laws.cases import BY_NAME
from tests.ops.plain import blend, causal, softmax, visible, weights

OP, LOSS = BY_NAME["deepseek_sparse_attention"], BY_NAME["indexer_loss"]


def score(index, b, t, s):
    """I of one pair."""
    index_q, index_k, index_w = index
    heads = range(index_q.shape[2])
    return sum(index_w[b, t, j] * max(index_q[b, t, j] @ index_k[b, s], 0.0) for j in heads)


def selected(index, top_k, allowed, T, S):
    """(B,1,T,S): the keys of each query."""
    B = len(index[0])
    seen = np.zeros((B, 1, T, S), bool)
    for b, t in np.ndindex(B, T):
        js = visible(allowed, b, 0, t, S)
        best = sorted(js, key=lambda s: -score(index, b, t, s))[:top_k]
        seen[b, 0, t, best] = True
    return seen


def deepseek_sparse_attention_oracle(q, k, v, index_q, index_k, index_w, top_k, allowed=None):
    T, S = q.shape[1], k.shape[1]
    allowed = causal(T, S) if allowed is None else allowed
    seen = selected((index_q, index_k, index_w), top_k, allowed, T, S)
    return blend(weights(q, k, seen), v)


def indexer_loss_oracle(q, k, index_q, index_k, index_w, top_k, allowed=None):
    (B, T), S, index = q.shape[:2], k.shape[1], (index_q, index_k, index_w)
    allowed = causal(T, S) if allowed is None else allowed
    seen = selected(index, top_k, allowed, T, S)
    mean, total = weights(q, k, seen).mean(1), 0.0
    for b, t in np.ndindex(B, T):
        js = np.flatnonzero(seen[b, 0, t])
        p = softmax(np.array([score(index, b, t, s) for s in js]))
        total += (mean[b, t, js] * np.log(mean[b, t, js] / p)).sum()
    return total / (B * T)


def test_all_heads_see_the_same_keys():
    args = OP.sample(seed=4, T=20, S=20)
    index = args["index_q"], args["index_k"], args["index_w"]
    op = lambda q, k, v: deepseek_sparse_attention(q, k, v, *index, top_k=5)
    seen = weights_of(jax.jit(op), args["q"], args["k"]) > 0
    assert (seen == seen[:, :1]).all()
    assert (seen.sum(-1) == np.minimum(np.arange(20) + 1, 5)).all()
    want = selected([np.asarray(x, float) for x in index], 5, causal(20, 20), 20, 20)
    assert (seen[:, :1] == want).all()


def test_later_tokens_choose_nothing():
    args, other, now = OP.sample(seed=5), OP.sample(seed=6), 5
    mixed = {
        n: jnp.concatenate([x[:, :now], other[n][:, now:]], axis=1) if n != "top_k" else x
        for n, x in args.items()
    }
    near(run(OP.fn, **mixed)[:, :now], run(OP.fn, **args)[:, :now])


def test_the_loss_teaches_the_indexer_alone_and_is_zero_where_it_agrees():
    args = LOSS.sample(seed=7)
    slopes = jax.jit(jax.grad(lambda x: indexer_loss(**x, top_k=4)))(
        {n: args[n] for n in args if n != "top_k"}
    )
    assert not np.any(slopes["q"]) and not np.any(slopes["k"])
    assert all(np.any(slopes[n]) for n in ("index_q", "index_k", "index_w"))
    flat = {n: 0 * x if n in ("q", "index_w") else x for n, x in args.items()}
    near(run(indexer_loss, **flat), 0.0)


def test_an_index_score_of_a_forbidden_pair_is_minus_infinity():
    args = LOSS.sample(seed=8)
    got = run(index_scores, args["index_q"], args["index_k"], args["index_w"])
    assert (np.isfinite(got) == causal(9, 9)).all()
