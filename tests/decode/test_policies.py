"""The laws of policies, and that each is its paper's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, decode, masks, mods
from attnjax.core.positions import rotary
from attnjax.decode import policies
from attnjax.ops import kv_decode
from tests.helpers import near, qkv, sample

B, T, N, K, H = 2, 11, 4, 2, 4
Q, KEYS, VALUES = qkv(B, T, N, H, K=K, seed=1, scale=1.5)
CUTS = (4, 1, 1, 3, 1, 1)
TERMS = {"mods": (mods.alibi(mods.alibi_slopes(N)),), "mask": masks.causal & masks.window(8)}
POLICIES = {
    "streaming_llm": lambda budget: policies.streaming_llm(budget, sinks=1),
    "h2o": lambda budget: policies.h2o(budget, recent=2),
    "tova": policies.tova,
    "snapkv": lambda budget: policies.snapkv(
        budget, window=3, smooth=functools.partial(kv_decode.mean_of_neighbors, size=3)
    ),
    "pyramidkv": lambda budget: (
        policies.pyramidkv(budget, 2, window=2, beta=2)[1]
        if budget < T
        else policies.pyramidkv(2 * budget, 2, window=2, beta=2)[1]
    ),
}
FORCED = {"streaming_llm": (1, 1), "h2o": (0, 2), "tova": (0, 0), "snapkv": (0, 3),
          "pyramidkv": (0, 2)}  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(policy, cuts, q, k, v):
    """The outputs, and what each call saw and left: (parts, B, L, X) positions."""
    cache = decode.Dense.empty(B, T + 1, K, H, heads=K)
    outs, seen, left, begin = [], [], [], 0
    for size in cuts:
        part = slice(begin, begin + size)
        cache = cache.append(k[:, part], v[:, part])
        outs.append(decode.attend_cache(q[:, part], cache, **TERMS))
        seen.append(cache.positions)
        cache = policy(q[:, part], cache, **TERMS)
        left.append(cache.positions)
        begin += size
    return jnp.concatenate(outs, axis=1), jnp.stack(seen), jnp.stack(left)


def held(positions):
    """Which tokens stand in the slots, (...,T,X)."""
    return (np.asarray(positions)[..., None, :] == np.arange(T)[:, None]).any(-3)


@pytest.mark.parametrize("name", POLICIES)
def test_the_laws_of_a_policy(name):
    budget = 5
    policy = POLICIES[name](budget)
    out, seen, left = run(policy, CUTS, Q, KEYS, VALUES)
    seen, left = held(seen), held(left)  # (parts, B, T, X)
    assert left.sum(2).max() == policy.budget == (3 if name == "pyramidkv" else budget)
    ends = np.cumsum(CUTS)
    # all that there is stays as long as there is room: what is dropped is dropped for the budget
    np.testing.assert_array_equal(left.sum(2)[:, 0, 0], np.minimum(ends, policy.budget))
    # what is dropped never returns
    for before, now, begin in zip(left, seen[1:], ends, strict=False):
        np.testing.assert_array_equal(now[:, :begin], before[:, :begin])
    assert not (left & ~seen).any()
    # what is forced stays
    sinks, recent = FORCED[name]
    for end, each in zip(ends, left, strict=True):
        assert each[:, :sinks].all() and each[:, end - recent : end].all()
    # a call is the same rows of the parallel form, under the mask of what it saw
    rows = np.repeat(np.arange(len(CUTS)), CUTS)
    pairs = jnp.asarray(seen[rows].transpose(1, 3, 0, 2).repeat(N // K, axis=1))
    terms = TERMS | {"mask": TERMS["mask"] & masks.array(pairs)}
    near(out, attend(Q, KEYS, VALUES, **terms))


@pytest.mark.parametrize("name", sample(["h2o"], POLICIES, pytest.mark.slow))
def test_a_budget_for_all_is_full_attention(name):
    near(run(POLICIES[name](T + 1), (7, 4), Q, KEYS, VALUES)[0], attend(Q, KEYS, VALUES, **TERMS))


def test_streaming_llm_is_its_op():
    """With places in the cache for positions, token by token."""
    budget, sinks = 4, 1

    def step(cache, token):
        q, k, v = (x[:, None] for x in token)
        cache = cache.append(k, v)
        out = decode.attend_cache(q, decode.renumbered(cache), turn=rotary)
        return policies.streaming_llm(budget, sinks=sinks)(q, cache), out[:, 0]

    window = budget + 1 - sinks
    want = kv_decode.streaming_attention(Q, KEYS, VALUES, sinks=sinks, window=window)
    out = scan(step, decode.Dense.empty(B, budget + 1, K, H), Q, KEYS, VALUES)
    near(jnp.swapaxes(out, 0, 1), want)


def scan(step, cache, *qkv):
    return jax.lax.scan(step, cache, tuple(jnp.swapaxes(x, 0, 1) for x in qkv))[1]


@pytest.mark.parametrize("heads", sample([K], [1], pytest.mark.slow))
def test_snapkv_is_its_op(heads):
    """Of a prompt at once, each head of keys for itself, or all heads together."""
    smooth = functools.partial(kv_decode.mean_of_neighbors, size=3)
    cache = decode.Dense.empty(B, T, K, H, heads=heads).append(KEYS, VALUES)
    kept = policies.snapkv(6, window=3, smooth=smooth)(Q, cache).positions
    want = kv_decode.snapkv(Q, KEYS, window=3, capacity=6, heads=heads, smooth=smooth)
    assert {*kept.shape} >= {heads}
    np.testing.assert_array_equal(held(kept), held(want))


def test_streaming_vlm_is_its_op():
    """Round after round: what stays is what the op keeps of the whole text so far."""
    rules = {"vision_rounds": 2, "text_rounds": 3, "sink": 1, "window": 2}
    kinds = np.array([0, 0] + [1, 1, 2, 3, 3] * 5)
    rounds = np.maximum(np.arange(kinds.size) - 2, 0) // 5
    policy = policies.streaming_vlm(**rules)

    @jax.jit
    def step(cache, kinds, rounds):
        told = tuple(jnp.broadcast_to(x[None, :, None], (1, 5, K)) for x in (kinds, rounds))
        token = jnp.zeros((1, 5, K, H))
        return policy(
            token.repeat(2, 2), cache.append(token, token, told, count=(kinds >= 0).sum())
        )

    cache = decode.Dense.empty(1, 30, K, H, extra=((), ()))
    for now in range(-1, 5):
        part = slice(0, 2) if now < 0 else slice(2 + 5 * now, 7 + 5 * now)
        new = [np.pad(x[part], (0, 5 - x[part].size), constant_values=-1) for x in (kinds, rounds)]
        cache = step(cache, *new)
        want = kv_decode.streaming_vlm(
            kinds[: part.stop], rounds[: part.stop], max(now, 0), **rules
        )
        left = cache.positions[0, :, 0]
        assert set(left[left >= 0].tolist()) == set(want[want >= 0].tolist())
    assert (left >= 0).sum() < kinds.size


def test_heavy_hitters_by_hand():
    """NumPy's sums of weights, dropped token by token, of one head of keys with two queries."""
    q, k, v = qkv(1, T, 2, H, K=1, seed=4, scale=2.0)
    budget, recent = 4, 1
    scores = np.einsum("tnh,sh->nts", np.asarray(q[0]), np.asarray(k[0, :, 0])) / np.sqrt(H)
    votes, alive, kept = np.zeros(T), [], []
    for t in range(T):
        alive.append(t)
        w = np.exp(scores[:, t, alive] - scores[:, t, alive].max(1, keepdims=True))
        votes[alive] += (w / w.sum(1, keepdims=True)).sum(0)
        while len(alive) > budget:
            alive.remove(min((x for x in alive if x <= t - recent), key=lambda x: votes[x]))
        kept.append(list(alive))

    def step(cache, token):
        q, k, v = (x[:, None] for x in token)
        cache = policies.h2o(budget, recent=recent)(q, cache.append(k, v))
        return cache, cache.positions[0, :, 0]

    left = scan(step, decode.Dense.empty(1, budget + 1, 1, H), q, k, v)
    assert [sorted(int(p) for p in at if p >= 0) for at in left] == kept


def test_the_pyramid_has_its_budget():
    budgets = policies.pyramid_budgets(256 + 64, 32, window=64)
    least = 256 // 20
    assert budgets[0] == 64 + 2 * 256 - least and len(budgets) == 32
    assert abs(np.mean(budgets) - 320) <= 16 and min(budgets) >= 64 + least
    assert set(np.diff(budgets)) == {-((2 * 256 - 2 * least) // 31)}


def test_masses_are_those_of_the_weights(monkeypatch):
    """Streamed or not; queries of padding have no vote."""
    cache = decode.Dense.empty(B, T, K, H).append(KEYS, VALUES, count=np.array([T, 3]))
    short = decode.masses(Q, cache, **TERMS)
    monkeypatch.setattr("attnjax.decode.attend._DENSE", 0)
    jax.clear_caches()
    near(decode.masses(Q, cache, **TERMS), short)
    near(short.sum((1, 2)), [N * T, N * 3.0])


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="budget is 3, .* at least the 4 tokens"):
        policies.h2o(3, recent=4)
    with pytest.raises(TypeError, match="cache is a Window, expected a Dense"):
        policies.tova(3)(Q, decode.Window.empty(B, 3, K, H))
    with pytest.raises(ValueError, match=r"expected at least window \+ beta = 52"):
        policies.pyramidkv(40, 4)


def test_what_may_exit_is_dropped():
    """An image in the text: its tokens leave, the rest stays at its positions."""
    cache = decode.Dense.empty(B, T, K, H).append(KEYS, VALUES)
    image = (cache.positions >= 2) & (cache.positions < 7)
    out = decode.attend_cache(Q, decode.drop(cache, image))
    see = masks.causal & (masks.prefix(2) | ~masks.prefix(7))
    near(out, attend(Q, KEYS, VALUES, mask=see))


def test_a_few_slots_alone():
    """`take`: the cache of some slots, of each head its own."""
    cache = decode.Dense.empty(B, T, K, H).append(KEYS, VALUES)
    slots = jnp.stack([jnp.asarray([3, 1, T]), jnp.asarray([0, 2, 5])], axis=1)
    few = cache.take(jnp.broadcast_to(slots, (B, 3, K)))
    seen = np.zeros((1, N, T, T), bool)
    seen[0, :2, :, [3, 1]] = seen[0, 2:, :, [0, 2, 5]] = True
    near(
        decode.attend_cache(Q, few), attend(Q, KEYS, VALUES, mask=masks.causal & masks.array(seen))
    )
