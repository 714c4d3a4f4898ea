"""FlexPrefill: its oracle, the pattern and the budget of each head, the Jensen-Shannon distance."""

import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import flexprefill, flexprefill_selection
from attnjax.ops.sparse_select.flexprefill import js_distance
from tests.helpers import near, pairs_of, qkv, run
from tests.ops.plain import blend, both, cut_tail, reach, softmax, weights

B, N, K, H = 2, 4, 2, 8


def _divergence(p, q):
    """Jensen and Shannon's, of two dense distributions."""
    kl = lambda a, b: sum(x * np.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


def _pattern(q, k, block_size, gamma, tau, min_budget):
    """(pairs (u, block) that one head sees, whether they are query-aware); q, k (T,H)."""
    (T, H), cut = q.shape, cut_tail(len(q), block_size)
    mean = lambda x, at: sum(x[i] for i in at) / len(at)
    last = range(max(T - block_size, 0), T)
    w = np.zeros((len(last), T))
    for row, i in enumerate(last):
        w[row, : i + 1] = softmax(np.array([q[i] @ k[j] for j in range(i + 1)]) / np.sqrt(H))
    w /= len(last)
    true = [sum(w[:, j].sum() for j in keys) for keys in cut]
    guess = softmax(np.array([mean(q, last) @ mean(k, keys) for keys in cut]) / np.sqrt(H))
    share = {}
    for u, queries in enumerate(cut):
        logits = [mean(q, queries) @ mean(k, keys) / np.sqrt(H) for keys in cut[: u + 1]]
        share |= {(u, c): p for c, p in enumerate(softmax(np.array(logits)))}
    aware = np.sqrt(_divergence(guess, true)) < tau
    if aware:
        seen = set(reach(share, gamma))
    else:
        seen = set()
        for j in reach({j: w[:, j].sum() for j in range(T)}, gamma):
            seen |= {(u, j // block_size) for u in range(j // block_size, len(cut))}
        on = lambda d: sum(w[row, i - d] for row, i in enumerate(last) if i >= d)
        for d in reach({d: on(d) for d in range(T)}, gamma):
            seen |= {(i // block_size, (i - d) // block_size) for i in range(d, T)}
    for u in range(len(cut)):
        best = sorted(range(1, u), key=lambda c, u=u: share[u, c], reverse=True)
        budget = max(2, int(np.ceil(min_budget / block_size)))
        seen |= {(u, c) for c in (0, u, *best[: budget - 2])}
    return seen, aware


def flexprefill_oracle(q, k, v, block_size, gamma, tau, min_budget, allowed=None):
    (B, T, N, _), K = q.shape, k.shape[2]
    seen = np.zeros((B, N, T, T), bool)
    for b, n in np.ndindex(B, N):
        pairs, _ = _pattern(q[b, :, n], k[b, :, n * K // N], block_size, gamma, tau, min_budget)
        for i in range(T):
            for j in range(i + 1):
                seen[b, n, i, j] = (i // block_size, j // block_size) in pairs
    return blend(weights(q, k, both(allowed, seen)), v)


@pytest.mark.parametrize(("tau", "aware"), [(0.0, {False}), (0.075, {False, True}), (2.0, {True})])
def test_flexprefill_chooses_the_blocks_of_the_pattern_of_each_head(tau, aware):
    q, k, _ = qkv(B, 21, N, 4, K=K, seed=1)
    given = {"block_size": 3, "gamma": 0.6, "tau": tau, "min_budget": 8}
    chosen = pairs_of(run(flexprefill_selection, q, k, **given))
    patterns = set()
    for b, n in np.ndindex(2, 4):
        want, kind = _pattern(np.float64(q[b, :, n]), np.float64(k[b, :, n // 2]), **given)
        assert chosen[b][n] == want
        patterns.add(bool(kind))
    assert patterns == aware
    sizes = [len(pairs) for heads in chosen for pairs in heads]
    assert len(set(sizes)) > 1 and min(sizes) < 28, "each head has a budget of its own"
    for pairs in (pairs for heads in chosen for pairs in heads):
        rows = [sum(u == row for u, _ in pairs) for row in range(7)]
        assert all(count >= min(row + 1, 3) for row, count in enumerate(rows))
        assert all({(row, 0), (row, row)} <= pairs for row in range(7))


def test_flexprefill_keeps_the_fewest_pairs_that_reach_gamma():
    q, k, _ = qkv(B, 24, N, 4, K=K)
    gamma, size = 0.7, 3
    given = {"block_size": size, "gamma": gamma, "tau": 2.0, "min_budget": 0}
    chosen = pairs_of(run(flexprefill_selection, q, k, **given))
    for b, n in np.ndindex(2, 4):
        mean = lambda x: np.float64(x).reshape(8, size, 4).mean(1)
        scores = mean(q[b, :, n]) @ mean(k[b, :, n // 2]).T / 2
        share = {(u, c): p for u in range(8) for c, p in enumerate(softmax(scores[u, : u + 1]))}
        forced = {(u, c) for u in range(8) for c in (0, u)}
        least = min(share[x] for x in chosen[b][n] - forced)
        assert sum(share[x] for x in chosen[b][n]) >= gamma * 8
        assert sum(p for p in share.values() if p > least) < gamma * 8


def test_flexprefill_of_everything_is_causal_attention_and_of_little_is_not():
    q, k, v = qkv(B, 21, N, H, K=K)
    of = lambda **given: run(flexprefill, q, k, v, block_size=3, **given)
    full = run(multi_head_attention, q, k, v, mask=masks.causal)
    near(of(min_budget=21, gamma=0.1), full)  # the budget alone
    assert not np.allclose(of(min_budget=6, gamma=0.3), full, atol=0.01)


def test_the_js_distance_is_a_distance():
    p, q = (np.random.default_rng(s).dirichlet(np.ones(6), 5).astype(np.float32) for s in (0, 1))
    d = np.asarray(js_distance(p, q))
    near(d, js_distance(q, p))
    near(d, [np.sqrt(_divergence(a, b)) for a, b in zip(p, q, strict=True)])
    assert (d > 0).all() and (d < np.sqrt(np.log(2))).all()
    one = np.eye(2, dtype=np.float32)
    near(js_distance(one[0], one[1]), np.sqrt(np.log(2)))
    assert js_distance(one[0], one[0]) == 0


def test_flexprefill_refuses_another_length_of_keys():
    q, k, _ = qkv(B, 12, N, H, K=K)
    with pytest.raises(ValueError, match="k: length S = 9; expected q's T = 12"):
        flexprefill(q, k[:, :9], k[:, :9])
