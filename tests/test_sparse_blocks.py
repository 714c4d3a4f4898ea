"""What the laws do not say of SeerAttention, FlexPrefill, VMoBA, BiFormer and dynamic masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attnjax import attend, masks, mods, nn
from attnjax.core.blocks import block_maps, select
from attnjax.core.positions import rotary
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import dynamic_mask
from attnjax.ops.sparse_select.flexprefill import js_distance
from attnjax.ops.sparse_select.vmoba import partition
from tests.oracles import sparse_blocks as oracle
from tests.oracles.plain import blend, causal, softmax, weights

close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)


def draw(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def qkv(T=12, N=4, K=2, H=8, seed=0):
    return draw(2, T, N, H, seed=seed), draw(2, T, K, H, seed=seed + 1), draw(2, T, K, H, seed=9)


def run(fn, *args, **static):
    """fn of arrays, jitted; some programs hold integers and selectors of blocks as well."""
    return jax.jit(functools.partial(fn, **static))(*args)


def members(selection):
    """The set of (u, b) of each example and head."""
    indices, valid = np.asarray(selection.indices), np.asarray(selection.valid)
    (B, U, X, _) = indices.shape
    return [
        [
            {(u, int(c)) for u in range(U) for c in indices[b, u, x][valid[b, u, x]]}
            for x in range(X)
        ]
        for b in range(B)
    ]


# ------------------------------------------------------------------------------------- rotary


def test_rotary_turns_pairs_and_leaves_products_to_the_difference():
    q, k = draw(1, 5, 1, 6), draw(1, 5, 1, 6, seed=1)
    at = np.array([0, 3, 4, 9, 100])
    got = np.asarray(rotary(q, at, 50.0))
    want = [oracle._rotated(np.float64(q[0, t, 0]), at[t], 50.0) for t in range(5)]
    close(got[0, :, 0], want)
    later = np.stack([at, at + 7])  # (B,T)
    both = np.asarray(rotary(np.repeat(q, 2, 0), later, 50.0))
    other = np.asarray(rotary(np.repeat(k, 2, 0), later, 50.0))
    products = np.einsum("btnh,bsnh->bts", both, other)
    close(products[0], products[1], atol=1e-4)
    assert not np.allclose(both[0], both[1], atol=0.1)
    with pytest.raises(ValueError, match="rotary: x has width H = 7, expected an even number"):
        rotary(draw(1, 2, 1, 7), np.arange(2))


# ------------------------------------------------------------------------------ SeerAttention

W_Q, W_K = draw(4, 8, 6, seed=3), draw(2, 24, 6, seed=4, scale=0.5)


@pytest.mark.parametrize(
    ("blocks", "choose"),
    [
        ((3, 3), functools.partial(select.top_k, k=2)),
        ((2, 4), functools.partial(select.threshold, least=np.log(0.3))),
    ],
)
def test_seer_of_pooled_queries_equals_the_formula(blocks, choose):
    q, k, v = qkv(T=11)
    got = run(sparse_select.seer_attention, q, k, v, W_Q, W_K, blocks=blocks, choose=choose)
    close(got, oracle.seer_attention(*map(np.float64, (q, k, v, W_Q, W_K)), blocks, choose))
    turned = [np.asarray(rotary(x, np.arange(11))) for x in (q, k)]
    assert not np.allclose(got, run(multi_head_attention, *turned, v, mask=masks.causal), atol=0.01)


def test_seer_without_rotary_positions_and_all_blocks_is_causal_attention():
    q, k, v = qkv()
    everything = functools.partial(select.threshold, least=-1e9)
    got = run(
        sparse_select.seer_attention, q, k, v, W_Q, W_K, blocks=(3, 3), choose=everything, base=None
    )
    close(got, run(multi_head_attention, q, k, v, mask=masks.causal))


def gate_loss(q, k, w_q, w_k):
    return nn.seer_loss(q, k, w_q, w_k, blocks=(3, 3))


def test_the_seer_loss_is_the_divergence_from_the_pooled_dense_map():
    q, k, _ = qkv(T=11)
    truth = oracle._seer_truth(np.float64(q), np.float64(k), (3, 3), 10000.0)
    turned = [np.asarray(rotary(x, np.arange(11))) for x in (q, k)]
    peak = np.asarray(
        block_maps.block_peak(*turned, 3, 3, mask=masks.causal)
    )  # not from a dense map
    close(np.swapaxes(peak / peak.sum(-1, keepdims=True), 1, 2), truth)
    total = 0.0
    for b, n, u in np.ndindex(truth.shape[:3]):
        args = map(np.float64, (q, k, W_Q, W_K))
        share = oracle._gate(*args, (3, 3), 10000.0, b, n, u)
        total += sum(truth[b, n, u, c] * np.log(truth[b, n, u, c] / share[c]) for c in share)
    loss, slopes = jax.jit(jax.value_and_grad(gate_loss, argnums=(0, 1, 2, 3)))(q, k, W_Q, W_K)
    close(loss, total / np.prod(truth.shape[:3]))
    assert loss > 0.01
    assert not np.any(slopes[0]) and not np.any(slopes[1]), "only the gate learns"
    assert np.any(slopes[2]) and np.any(slopes[3])
    # Without queries the map is uniform, row by row, and so is the gate.
    assert abs(jax.jit(gate_loss)(0 * q, k, W_Q, W_K)) < 1e-6


def test_the_seer_loss_leaves_padding_out():
    q, k, _ = qkv(T=9)
    padded = [np.concatenate([x, np.full_like(x[:, :4], np.nan)], axis=1) for x in (q, k)]
    lengths = np.array([9, 9])
    masked = functools.partial(nn.seer_loss, blocks=(3, 3), mask=masks.lengths(lengths, lengths))
    close(jax.jit(masked)(*padded, W_Q, W_K), jax.jit(gate_loss)(q, k, W_Q, W_K), atol=1e-6)


def test_a_seer_gate_learns_what_attention_looks_at():
    gate = nn.SeerGate(
        4, 8, kv_heads=2, gate_width=8, blocks=(1, 4), rngs=nnx.Rngs(0),
        choose=functools.partial(select.top_k, k=2),
    )  # fmt: skip
    layer = nn.Attention(16, 4, kv_heads=2, head_width=8, attend=gate, rngs=nnx.Rngs(1))
    x = jnp.asarray(draw(2, 16, 16, scale=3.0))
    graph, params = nnx.split(layer)
    q, k, v = layer.project(x)
    map_of = block_maps.block_mass(
        *(rotary(y, np.arange(16)) for y in (q, k)), 1, 4, mask=masks.causal
    )

    @jax.jit
    def recall(params):
        """The share of attention's weight that falls on the chosen blocks."""
        chosen = nnx.merge(graph, params).attend.selection(q, k)
        return (jnp.take_along_axis(map_of, chosen.indices, -1) * chosen.valid).sum(-1).mean()

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
    q, k, v = qkv()
    gate = nn.SeerGate(4, 8, kv_heads=2, gate_width=6, blocks=(3, 3), rngs=nnx.Rngs(0))
    gate.choose = functools.partial(select.top_k, k=2)
    weights = [x[...] for x in (gate.w_q, gate.w_k)]
    assert [x.shape for x in weights] == [(4, 8, 6), (2, 24, 6)]
    got = nnx.jit(lambda gate: gate(q, k, v))(gate)
    close(got, oracle.seer_attention(*map(np.float64, (q, k, v, *weights)), (3, 3), gate.choose))


def test_seer_refuses_what_does_not_fit():
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"blocks: \(3, 4\); expected the first to divide"):
        sparse_select.seer_attention(q, k, v, W_Q, W_K, blocks=(3, 4))
    with pytest.raises(ValueError, match="kv_heads: got 3, expected a divisor of heads 4"):
        nn.SeerGate(4, 8, kv_heads=3, rngs=nnx.Rngs(0))


# -------------------------------------------------------------------------------- FlexPrefill


@pytest.mark.parametrize(("tau", "aware"), [(0.0, {False}), (0.075, {False, True}), (2.0, {True})])
def test_flexprefill_chooses_the_blocks_of_the_pattern_of_each_head(tau, aware):
    q, k, _ = qkv(T=21, H=4)
    given = dict(block_size=3, gamma=0.6, tau=tau, min_budget=8)
    chosen = members(run(sparse_select.flexprefill_selection, q, k, **given))
    found = set()
    for b, n in np.ndindex(2, 4):
        want, kind = oracle._pattern(np.float64(q[b, :, n]), np.float64(k[b, :, n // 2]), **given)
        assert chosen[b][n] == want
        found.add(bool(kind))
    assert found == aware
    sizes = [len(pairs) for heads in chosen for pairs in heads]
    assert len(set(sizes)) > 1 and min(sizes) < 28, "each head has a budget of its own"
    for pairs in (pairs for heads in chosen for pairs in heads):
        rows = [sum(u == row for u, _ in pairs) for row in range(7)]
        assert all(count >= min(row + 1, 3) for row, count in enumerate(rows))
        assert all({(row, 0), (row, row)} <= pairs for row in range(7))


def test_flexprefill_keeps_the_fewest_pairs_that_reach_gamma():
    q, k, _ = qkv(T=24, H=4)
    gamma, size = 0.7, 3
    chosen = members(run(
        sparse_select.flexprefill_selection, q, k,
        block_size=size, gamma=gamma, tau=2.0, min_budget=0,
    ))  # fmt: skip
    for b, n in np.ndindex(2, 4):
        mean = lambda x: np.float64(x).reshape(8, size, 4).mean(1)
        scores = mean(q[b, :, n]) @ mean(k[b, :, n // 2]).T / 2
        share = {(u, c): p for u in range(8) for c, p in enumerate(softmax(scores[u, : u + 1]))}
        forced = {(u, c) for u in range(8) for c in (0, u)}
        least = min(share[x] for x in chosen[b][n] - forced)
        assert sum(share[x] for x in chosen[b][n]) >= gamma * 8
        assert sum(p for p in share.values() if p > least) < gamma * 8


def test_flexprefill_of_everything_is_causal_attention_and_of_little_is_not():
    q, k, v = qkv(T=21)
    of = lambda **given: run(sparse_select.flexprefill, q, k, v, block_size=3, **given)
    full = run(multi_head_attention, q, k, v, mask=masks.causal)
    close(of(min_budget=21, gamma=0.1), full)  # the budget alone
    assert not np.allclose(of(min_budget=6, gamma=0.3), full, atol=0.01)


def test_the_js_distance_is_a_distance():
    p, q = (np.random.default_rng(s).dirichlet(np.ones(6), 5).astype(np.float32) for s in (0, 1))
    d = np.asarray(js_distance(p, q))
    close(d, js_distance(q, p))
    close(d, [np.sqrt(oracle._divergence(a, b)) for a, b in zip(p, q, strict=True)])
    assert (d > 0).all() and (d < np.sqrt(np.log(2))).all()
    one = np.eye(2, dtype=np.float32)
    close(js_distance(one[0], one[1]), np.sqrt(np.log(2)))
    assert js_distance(one[0], one[0]) == 0


def test_flexprefill_refuses_another_length_of_keys():
    q, k, _ = qkv()
    with pytest.raises(ValueError, match="k: length S = 9; expected q's T = 12"):
        sparse_select.flexprefill(q, k[:, :9], k[:, :9])


# -------------------------------------------------------------------------------------- VMoBA


def test_a_partition_is_a_permutation_filled_up():
    order = partition((3, 4, 5), (2, 3, 2))
    inside = order[order < 60]
    assert len(order) == 2 * 2 * 3 * 12 and sorted(inside) == list(range(60))
    tokens = np.arange(60) ** 2
    assert (tokens[inside][np.argsort(inside)] == tokens).all()
    places = np.array(np.unravel_index(inside, (3, 4, 5))) // np.array([[2], [3], [2]])
    block = np.arange(len(order))[order < 60] // 12
    assert len(set(map(tuple, places.T))) == len(set(block)) == 12
    assert len({(*place, b) for *place, b in zip(*places, block, strict=True)}) == 12


def test_the_blocks_of_layers_go_round():
    got = [sparse_select.vmoba_block(layer, (8, 6, 4), (2, 3, 2)) for layer in range(4)]
    assert got == [(2, 6, 4), (8, 3, 2), (2, 3, 2), (2, 6, 4)]


def test_vmoba_by_query_over_slabs_is_moba_without_order():
    q, k, v = qkv()
    shape = (6, 1, 2)
    block = sparse_select.vmoba_block(0, shape, (2, 1, 1))
    choose = functools.partial(select.top_k, k=2)
    got = run(sparse_select.vmoba, q, k, v, shape=shape, block=block, choose=choose)
    seen = np.zeros((2, 4, 12, 12), bool)
    for b, n, i in np.ndindex(2, 4, 12):
        likes = [q[b, i, n] @ k[b, 4 * c : 4 * c + 4, n // 2].mean(0) for c in range(3)]
        for c in np.argsort(likes)[1:]:
            seen[b, n, i, 4 * c : 4 * c + 4] = True
    close(got, blend(weights(*map(np.float64, (q, k)), seen), np.float64(v)))
    assert not np.allclose(got, run(multi_head_attention, q, k, v), atol=0.01)


def test_vmoba_sees_more_pairs_with_more_mass_and_always_one():
    q, k, v = qkv()
    shape, block = (3, 2, 2), (2, 2, 1)  # blocks that do not divide the frames

    @jax.jit
    def of(p):
        chosen = []

        def choose(mass, **sizes):
            chosen.append(select.top_p_of_head(mass, p, **sizes))
            return chosen[0]

        out = sparse_select.vmoba(q, k, v, shape=shape, block=block, choose=choose)
        return out, chosen[0].valid.sum((1, 3))

    outs, counts = map(np.asarray, zip(*map(of, (1e-6, 0.2, 0.5, 0.8, 1.1)), strict=True))
    assert (np.diff(counts, axis=0) >= 0).all() and (counts[0] == 1).all()
    assert len(set(counts[2].ravel())) > 1, "heads get what they deserve"
    assert (counts[-1] == 12 * 4).all()
    best = functools.partial(select.top_k, k=1)
    close(outs[0], run(sparse_select.vmoba, q, k, v, shape=shape, block=block, choose=best))
    close(outs[-1], run(multi_head_attention, q, k, v))


def test_vmoba_of_scores_far_apart_still_sees_everything():
    q, k, v = qkv()
    q = 200 * q  # mass of most pairs underflows
    everything = functools.partial(select.top_p_of_head, p=1.0)
    got = run(sparse_select.vmoba, q, k, v, shape=(3, 2, 2), block=(1, 2, 2), choose=everything)
    close(got, run(multi_head_attention, q, k, v), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"shape": (3, 2, 1), "block": (1, 1, 1)}, r"shape: \(3, 2, 1\); expected T = 12"),
        ({"shape": (3, 2, 2), "block": (2, 2)}, r"block: \(2, 2\); expected 3 positive lengths"),
        ({"shape": (3, 2, 2), "block": (2, 0, 2)}, "expected 3 positive lengths"),
    ],
)
def test_vmoba_refuses_what_does_not_fit(given, told):
    with pytest.raises(ValueError, match=told):
        sparse_select.vmoba(*qkv(), **given)


# ----------------------------------------------------------------------------------- BiFormer


def test_a_region_that_likes_itself_best_is_a_window():
    rows, columns = np.divmod(np.arange(24), 6)
    region = rows // 2 * 2 + columns // 3
    codes = 4 * np.eye(4, 8, dtype=np.float32)[region][None, :, None]
    q, k, v = qkv(T=24)
    q, k = q + codes, k + codes
    got = run(sparse_select.bi_level_routing_attention, q, k, v, shape=(4, 6), regions=2, top_k=1)
    close(got, run(multi_head_attention, q, k, v, mask=masks.document(region)))


def test_biformer_of_a_map_that_regions_do_not_divide():
    q, k, v = qkv(T=15)
    kernel = draw(5, 5, 4, 8, seed=5)
    given = dict(shape=(3, 5), regions=2, top_k=2)
    got = run(sparse_select.bi_level_routing_attention, q, k, v, kernel, **given)
    close(got, oracle.bi_level_routing_attention(*map(np.float64, (q, k, v, kernel)), **given))
    plain = run(sparse_select.bi_level_routing_attention, q, k, v, **given)
    assert not np.allclose(plain, run(multi_head_attention, q, k, v), atol=0.01)
    with pytest.raises(ValueError, match=r"shape: \(4, 4\); expected T = 15 and S = 15 cells"):
        sparse_select.bi_level_routing_attention(q, k, v, shape=(4, 4))


# ---------------------------------------------------------------------- dynamic mask attention

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
    q, k, v = qkv(N=2)
    seen = top_keys(v, 2, 3)
    assert (seen.sum(-1) == np.minimum(np.arange(12) + 1, 3)).all()
    of = functools.partial(sparse_select.dynamic_mask_attention, block_size=4)

    @functools.partial(jax.jit, static_argnums=0)
    def slopes(f, q, v, w):
        both = lambda *x: (jnp.sin(out := f(*x)).sum(), out)
        return jax.grad(both, (0, 1, 2), has_aux=True)(q, v, w)

    got = slopes(lambda q, v, w: of(q, k, v, w, A, window=3, impl="blockwise"), q, v, W)
    want = slopes(lambda q, v, w: masked_dense(q, k, v, w, seen), q, v, W)
    jax.tree.map(functools.partial(close, atol=1e-4), got, want)
    assert np.any(got[0][2]), "gradients reach w"
    full = run(masked_dense, q, k, v, W, causal(12, 12))  # a key bias, and no key left out
    close(run(of, q, k, v, W, A, window=12), full)
    assert not np.allclose(got[1], full, atol=0.01)


def test_blocks_in_which_a_dynamic_mask_shows_nothing_are_skipped(monkeypatch):
    T, size, window = 30, 4, 3
    q, k, v = draw(2, T, 2, 8), draw(2, T, 2, 8), draw(2, T, 2, 8, seed=8)
    chosen = []
    monkeypatch.setattr(dynamic_mask, "attend", lambda q, k, v, blocks, **_: chosen.append(blocks))
    sparse_select.dynamic_mask_attention(q, k, v, W, A, window=window, block_size=size)
    seen = top_keys(v, 2, window)
    for b, n in np.ndindex(2, 2):
        pairs = {(i // size, j // size) for i, j in np.argwhere(seen[b, n])}
        got = members(chosen[0])[b][n]
        assert got == pairs | {(u, u) for u in range(8)}
        assert len(got) < 30, "not all 36 of causal attention"


def test_equal_keys_of_a_dynamic_mask_are_kept_from_the_first_on():
    T, window = 7, 3
    q, v = draw(1, T, 1, T), np.eye(T, dtype=np.float32)[None, :, None]
    out = run(
        sparse_select.dynamic_mask_attention, q, q, v, np.ones((T, 1), np.float32),
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
        sparse_select.dynamic_mask_attention(*qkv(), w, A, window=window)
