"""FlexPrefill: its oracle, the pattern and the budget of each head, the Jensen-Shannon distance."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import flexprefill, flexprefill_selection
from attnjax.ops.sparse_select.flexprefill import blocks_of_lines, js_distance, lines_of_tokens
from tests.helpers import near, pairs_of, qkv, run
from tests.ops.plain import blend, both, cut_tail, reach, softmax, weights

B, N, K, H = 2, 4, 2, 8


def _divergence(p, q):
    """Jensen and Shannon's, of two dense distributions."""
    kl = lambda a, b: sum(x * np.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


def _pattern(q, k, block_size, gamma, tau, min_budget, max_budget=10**9, wide=True):
    """(pairs (u, block) that one head sees, whether they are query-aware); q, k (T,H)."""
    (T, H), cut = q.shape, cut_tail(len(q), block_size)
    n, least, most = len(cut), *(max(1, -(-x // block_size)) for x in (min_budget, max_budget))
    if n <= max(2, least):
        return {(u, c) for u in range(n) for c in range(u + 1)}, False
    mean = lambda x, at: sum(x[i] for i in at) / len(at)
    last = range(T - block_size, T)
    columns, diagonals = np.zeros(T), np.zeros(T)
    for i in last:
        row = softmax(np.array([q[i] @ k[j] for j in range(i + 1)]) / np.sqrt(H)) / len(last)
        columns[: i + 1] += row
        diagonals[: i + 1] += row[::-1]
    true = [sum(columns[j] for j in keys) for keys in cut]
    guess = softmax(np.array([mean(q, last) @ mean(k, keys) for keys in cut]) / np.sqrt(H))
    aware = np.sqrt(_divergence(guess, true)) < tau
    share = {}
    for u, queries in enumerate(cut):
        logits = [mean(q, queries) @ mean(k, keys) / np.sqrt(H) for keys in cut[: u + 1]]
        share |= {(u, c): p for c, p in enumerate(softmax(np.array(logits)))}
    seen = set(_within(share, gamma * n)) if aware else set()
    if not wide:  # the paper's lines; not for query-aware heads
        count = lambda x: max(len(reach(dict(enumerate(x)), gamma)), least * block_size)
        taken = [np.argsort(-x)[: count(x)] for x in (columns, diagonals)]
        always = {(u, c) for u in range(n) for c in (0, u)}
        return _crossed(*taken, T, block_size) | always, aware
    offset_of = lambda d: n - 1 - (T - 1 - d) // block_size  # cut from the farthest on
    offsets = [sum(x for d, x in enumerate(diagonals) if offset_of(d) == o) for o in range(n)]
    for lines, mass, at in (
        (columns, true, lambda u, c: c),
        (diagonals, offsets, lambda u, c: u - c),
    ):
        count = (1 + len(_within(dict(enumerate(lines)), gamma))) // 128 + 1
        count = least if aware else min(max(count, least), most)
        taken = [0, *sorted(range(1, n), key=lambda c: -mass[c])[: count - 1]]
        seen |= {(u, c) for u in range(n) for c in range(u + 1) if at(u, c) in taken}
    return seen, aware


def _within(mass, most):
    """The largest keys while their sum is at most so much."""
    taken, total = [], 0.0
    for key in sorted(mass, key=mass.get, reverse=True):
        total += mass[key]
        if total > most:
            break
        taken.append(key)
    return taken


def _crossed(columns, distances, T, block_size):
    """The pairs of blocks that some columns and diagonals pass through."""
    place = lambda i, j: (i // block_size, j // block_size)
    seen = {place(i, j) for j in columns for i in range(j, T)}
    return seen | {place(i, i - d) for d in distances for i in range(d, T)}


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
    assert len(set(sizes)) > 1 and min(sizes) < 28, "each head has a pattern of its own"
    for pairs in (pairs for heads in chosen for pairs in heads):
        assert all({(row, 0), (row, row)} <= pairs for row in range(7))


@pytest.mark.parametrize(
    ("gamma", "budgets"),
    [(0.6, (64, None)), (0.9, (1, None)), (0.99, (1, 500)), (0.97, (200, 700))],
)
def test_lines_as_wide_as_blocks_leave_most_of_a_long_prompt_out(gamma, budgets):
    """A thousand tokens, which the blocks do not divide: the numbers of blocks come into play."""
    q, k, _ = qkv(1, 1000, 1, 4, seed=2)
    given = {"block_size": 64, "gamma": gamma, "tau": 0.0, "min_budget": budgets[0]}
    chosen = pairs_of(run(flexprefill_selection, q, k, max_budget=budgets[1], **given))[0][0]
    most = 10**9 if budgets[1] is None else budgets[1]
    assert (
        chosen == _pattern(*(np.float64(x[0, :, 0]) for x in (q, k)), **given, max_budget=most)[0]
    )
    crossing = run(flexprefill_selection, q, k, lines=lines_of_tokens, **given)
    assert len(chosen) < 0.9 * 136 and len(pairs_of(crossing)[0][0]) > 0.97 * 136


@pytest.mark.parametrize(("count", "want"), [(16, 1), (1024, 8)])
def test_the_number_of_blocks_of_lines_by_hand(count, want):
    """Equal weights, gamma = 0.9: c = 15 and 922 of 1024 lines, n = c // 128 + 1."""
    lines = jnp.zeros(1024).at[:count].set(1 / count)
    assert blocks_of_lines(lines, 0.9, least=1, most=16) == want
    assert blocks_of_lines(lines, 0.9, least=3, most=5) == min(max(want, 3), 5)


def test_the_paper_s_lines_are_as_wide_as_a_token():
    q, k, _ = qkv(B, 21, N, 4, K=K, seed=1)
    given = {"block_size": 3, "gamma": 0.3, "tau": 0.0, "min_budget": 0}
    chosen = pairs_of(run(flexprefill_selection, 3 * q, k, lines=lines_of_tokens, **given))
    for b, n in np.ndindex(2, 4):
        want, _ = _pattern(
            3 * np.float64(q[b, :, n]), np.float64(k[b, :, n // 2]), **given, wide=False
        )
        assert chosen[b][n] == want


def test_query_aware_heads_keep_the_largest_pairs_up_to_gamma():
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
        assert sum(p for p in share.values() if p >= least) <= gamma * 8
        more = max(p for x, p in share.items() if x not in chosen[b][n])
        assert sum(p for p in share.values() if p >= more) > gamma * 8


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
