"""Attention over caches: equal to the parallel form, whatever is cached how, and split where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from attnjax import attend, decode, masks, mods, normalizers
from attnjax.core.positions import rotary
from attnjax.ops.softmax_core import forgetting_attention
from tests.helpers import draw, near, qkv, sample

B, T, N, K, H = 2, 9, 4, 2, 4
Q, KEYS, VALUES = qkv(B, T, N, H, K=K, seed=1)
CUTS = (4, 1, 3, 1)

CACHES = {
    "dense": lambda **more: decode.Dense.empty(B, 11, K, H, **more),
    "heads": lambda **more: decode.Dense.empty(B, 11, K, H, heads=K, **more),
    "window": lambda **more: decode.Window.empty(B, 3, K, H, sinks=1, chunk=4, **more),
    "paged": lambda **more: decode.Paged.empty(B, 12, K, H, pages=7, page=3, **more),
}
SEES = {"window": masks.window(2) | masks.sinks(1)}
TERMS = {
    "plain": {},
    "alibi": {
        "mods": (mods.alibi(mods.alibi_slopes(N)), mods.soft_cap(2.0)),
        "mask": masks.causal & masks.window(4),
    },
    "entmax": {
        "mods": (mods.relative_bias(draw(N, 7, seed=2)),),
        "normalizer": normalizers.entmax(1.5),
        "scale": 0.7,
    },
    "sink": {
        "normalizer": normalizers.softmax_sink(draw(N, seed=3)),
        "mask": masks.causal & ~masks.fn(lambda q, k: (q - k) % 3 == 1),
    },
    "documents": {"mask": masks.causal & masks.document(np.arange(20) // 5, np.arange(20) // 5)},
    "signed": {"normalizer": normalizers.signed, "turn": rotary},
    "prefix": {"mask": masks.causal | masks.prefix(3), "normalizer": normalizers.sigmoid(-1.0)},
}
FEW = [("dense", "alibi"), ("heads", "signed"), ("window", "entmax"), ("paged", "documents")]


def parallel(q, k, v, see=masks.everything, *, turn=None, mask=masks.causal, **terms):
    """Attention of the last queries over the whole text at once."""
    at = np.arange(k.shape[1])  # given, for arrays of masks may be those of a longer text
    own = at[-q.shape[1] :]
    if turn is not None:
        q, k = turn(q, own), turn(k, at)
    return attend(q, k, v, mask=mask & see, q_positions=own, k_positions=at, **terms)


def run(cache, q, k, v, cuts=CUTS, **terms):
    """The outputs of parts of the text, one after the other, and the cache behind them."""
    outs, begin = [], 0
    for size in cuts:
        part = slice(begin, begin + size)
        cache = cache.append(k[:, part], v[:, part])
        outs.append(decode.attend_cache(q[:, part], cache, **terms))
        begin += size
    return jnp.concatenate(outs, axis=1), cache


every = [(cache, name) for cache in CACHES for name in TERMS]


@pytest.mark.parametrize("case", sample(FEW, every, pytest.mark.slow), ids="-".join)
def test_parts_equal_the_whole(case):
    cache, name = case
    terms = TERMS[name]
    want = parallel(Q, KEYS, VALUES, SEES.get(cache, masks.everything), **terms)
    near(run(CACHES[cache](), Q, KEYS, VALUES, **terms)[0], want)


@pytest.mark.parametrize("name", sample(["paged"], ["dense", "heads"], pytest.mark.slow))
def test_examples_have_lengths_of_their_own(name):
    """Prompts padded behind, then steps: each example is what it is alone."""
    counts = np.array([4, 2])

    @jax.jit
    def both(q, k, v):
        cache = CACHES[name]().append(k[:, :4], v[:, :4], count=counts)
        prompt = decode.attend_cache(q[:, :4], cache)
        cache = cache.append(k[:, 4:5], v[:, 4:5])
        return cache, jnp.concatenate([prompt, decode.attend_cache(q[:, 4:5], cache)], axis=1)

    cache, out = both(Q, KEYS, VALUES)
    np.testing.assert_array_equal(cache.length, counts + 1)
    for b, count in enumerate(counts):
        at = np.r_[:count, 4]
        near(out[b, at], parallel(*(x[b : b + 1, at] for x in (Q, KEYS, VALUES)))[0])


@pytest.mark.parametrize("codec", [decode.Plain(jnp.float16), decode.int8], ids=["half", "int8"])
def test_a_number_that_is_none_reaches_the_rows_that_see_it(codec):
    """A NaN in a key, an infinity in a value, a number that float16 cannot hold."""
    k, v = np.array(KEYS), np.array(VALUES)
    k[0, 2, 0, 1], v[1, 3, 1, 0], k[0, 4, 1, 0] = np.nan, np.inf, 3e38
    cache = decode.Dense.empty(B, 8, K, H, codec=codec).append(k[:, :5], v[:, :5])
    out = decode.attend_cache(Q[:, :5], cache).reshape(B, 5, K, -1)
    bad = np.zeros((B, 5, K), bool)
    bad[0, 2:, 0] = bad[1, 3:, 1] = bad[0, 4:, 1] = True
    np.testing.assert_array_equal(np.isnan(out).any(-1), bad)
    np.testing.assert_array_equal(np.isnan(out).all(-1), bad)
    told = np.isnan(cache.read()[0]).all(-1)
    assert told[0, 2, 0] and told[1, 3, 1] and told[0, 4, 1] and told.sum() == 3


@pytest.mark.parametrize("name", sample(["window"], ["dense", "paged"], pytest.mark.slow))
def test_drafts_that_are_refused_leave_nothing(name):
    @jax.jit
    def both(q, k, v):
        cache = CACHES[name]().append(k[:, :4], v[:, :4]).append(k[:, 4:5], v[:, 4:5])
        wrong = cache.append(v[:, :4], k[:, :4])
        right = wrong.rewind(5).append(k[:, 5:6], v[:, 5:6])
        see = SEES.get(name, masks.everything)
        want = parallel(q[:, 5:6], k[:, :6], v[:, :6], see)
        return right.positions, decode.attend_cache(q[:, 5:6], right), want

    positions, out, want = both(Q, KEYS, VALUES)
    assert positions.max() == 5
    near(out, want)


def test_a_step_is_one_program():
    """Shapes never change: a scan carries a cache, and steps outside compile once."""

    @jax.jit
    def step(cache, qkv):
        q, k, v = (x[:, None] for x in qkv)
        cache = cache.append(k, v)
        return cache, decode.attend_cache(q, cache)[:, 0]

    tokens = [jnp.swapaxes(x, 0, 1) for x in (Q, KEYS, VALUES)]
    want = jnp.swapaxes(parallel(Q, KEYS, VALUES), 0, 1)
    cache, out = jax.lax.scan(step, CACHES["dense"](), tuple(tokens))
    near(out, want)
    cache = CACHES["dense"]()
    for t in range(3):
        cache, out = step(cache, tuple(x[t] for x in tokens))
        near(out, want[t])
    assert step._cache_size() == 1


# ------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 2)])
def test_integers_are_near_and_small(bits, group):
    codec = decode.Integers(bits, group)
    x = draw(1, 50, 2, 8, scale=3.0)
    stored = codec.encode(x)
    parts = np.asarray(x).reshape(1, 50, 2, -1, group or 8)
    step = np.abs(parts).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
    error = np.asarray(codec.decode(stored)).reshape(parts.shape) - parts
    # half a step, and what float16 rounds the scale by, at the largest number
    assert (np.abs(error) <= step * (0.5 + 2.0**-11 * 2 ** (bits - 1)) + 1e-6).all()
    assert stored.values.size * stored.values.dtype.itemsize == x.size * bits // 8
    again = codec.encode(codec.decode(stored))
    near(codec.decode(again), codec.decode(stored), 2e-3)


@pytest.mark.parametrize("name", sample(["heads"], CACHES, pytest.mark.slow))
def test_a_quantized_cache_is_attention_over_what_it_holds(name):
    codec = decode.int8
    rounded = [codec.decode(codec.encode(x)) for x in (KEYS, VALUES)]
    out, _ = run(CACHES[name](codec=codec), Q, KEYS, VALUES)
    near(out, parallel(Q, *rounded, SEES.get(name, masks.everything)))


def test_narrow_queries_read_wide_caches():
    narrow = [x.astype(jnp.bfloat16) for x in (Q, KEYS, VALUES)]
    out, cache = run(CACHES["dense"](codec=decode.Plain(jnp.bfloat16)), *narrow)
    assert out.dtype == cache.k.dtype == jnp.bfloat16
    near(out.astype(float), parallel(*narrow).astype(float), 1e-2)


def test_numbers_of_keys_ride_along():
    """The forgetting transformer: each slot keeps the sum of log gates up to its token."""
    log_f = -jnp.abs(draw(B, T, N, seed=7))
    q, k, v = qkv(B, T, N, H, seed=8)
    sums = jnp.cumsum(log_f, axis=1)
    cache, outs = decode.Dense.empty(B, T, N, H, extra=((),)), []
    for t in range(T):
        part = slice(t, t + 1)
        cache = cache.append(k[:, part], v[:, part], (sums[:, part],))
        forget = mods.mod(_minus, query=sums[:, part], key=cache.riders()[0])
        outs.append(decode.attend_cache(q[:, part], cache, mods=(forget,)))
    near(jnp.concatenate(outs, axis=1), forgetting_attention(q, k, v, log_f))


def _minus(score, own, other):
    return score + (own - other)


# --------------------------------------------------------------------------- texts that share


def test_a_fork_reads_its_prefix_once():
    slope = mods.mod(_added, query=draw(4, 2, N, seed=4))
    terms = {"mods": (mods.alibi(mods.alibi_slopes(N)), slope), "turn": rotary}

    @jax.jit
    def both(q, k, v):
        prefix = CACHES["dense"]().append(KEYS, VALUES)
        own = decode.fork(prefix, decode.Dense.empty(4, 5, K, H)).append(k[:, :1], v[:, :1])
        own = own.append(v, k).rewind(T + 1).append(k[:, 1:], v[:, 1:])
        start = ((KEYS, k), (VALUES, v))
        whole = [jnp.concatenate([jnp.repeat(x, 2, axis=0), y], axis=1) for x, y in start]
        return decode.attend_cache(q, own, **terms), parallel(q, *whole, **terms)

    q, k, v = qkv(4, 3, N, H, K=K, seed=9)
    near(*both(q[:, 1:], k, v))


def _added(score, x):
    return score + x


def test_pages_are_shared_until_they_are_written():
    """Four texts from two; one of them goes back into what it shares, and spares the others."""

    @jax.jit
    def forked(k, v):
        cache = decode.Paged.empty(B, 12, K, H, pages=12, page=3)
        many = cache.append(KEYS[:, :4], VALUES[:, :4]).fork(2)
        grown = many.append(k, v)
        back = grown.rewind(jnp.asarray([4, 1, 6, 6])).append(v[:, :1], k[:, :1])
        return many, grown, back, decode.attend_cache(k[:, :1].repeat(2, 2), back)

    k, v = draw(4, 2, K, H, seed=5), draw(4, 2, K, H, seed=6)
    *caches, out = forked(k, v)
    pages = [(int((x.readers > 0).sum()), int(x.readers.sum())) for x in caches]
    # two each, shared; a page to write in for each; one more for each, but for the first
    assert pages == [(4, 8), (6, 8), (8, 9)]
    texts = [[jnp.repeat(x[:, :4], 2, axis=0), y] for x, y in ((KEYS, k), (VALUES, v))]
    for row, kept in enumerate((4, 1, 6, 6)):
        own = [jnp.concatenate([*x, y], axis=1) for x, y in zip(texts, (v, k), strict=True)]
        keys, values = (
            jnp.concatenate([x[row : row + 1, :kept], x[row : row + 1, 6:7]], axis=1) for x in own
        )
        near(out[row : row + 1], parallel(k[row : row + 1, :1].repeat(2, 2), keys, values))


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("cache", "tokens", "told"),
    [
        (
            "dense",
            12,
            "Dense.append: T = 12 tokens, but 0 of the L = 11 slots are held; expected mo",
        ),
        ("window", 5, "Window.append: T = 5 tokens, expected at most chunk = 4"),
        ("paged", 13, "Paged.append: T = 13 tokens, .* expected longer lists, or more pages"),
    ],
)
def test_what_does_not_fit_is_told(cache, tokens, told):
    k = draw(B, tokens, K, H)
    with pytest.raises(ValueError, match=told):
        CACHES[cache]().append(k, k)


def test_shapes_are_told():
    cache = CACHES["dense"]()
    with pytest.raises(
        ValueError, match=r"Dense.append: k \(B,T,K,H\) has shape .* \(2, 9, 2, 4\)"
    ):
        cache.append(Q, VALUES)
    with pytest.raises(ValueError, match="extra has shapes"):
        cache.append(KEYS, VALUES, (KEYS,))
    with pytest.raises(ValueError, match="heads: got 3, expected 1, or K = 2"):
        decode.Dense.empty(B, 4, K, H, heads=3)
    with pytest.raises(ValueError, match="a multiple of group 3"):
        decode.Dense.empty(B, 4, K, H, codec=decode.Integers(8, 3))
    with pytest.raises(ValueError, match="expected a multiple of prefix's 2"):
        decode.fork(cache, decode.Dense.empty(3, 4, K, H))


@pytest.mark.parametrize("name", ["dense", "paged"])
def test_under_jit_a_full_cache_gives_nan(name):
    """Of the example that is full, and of no other."""

    @jax.jit
    def both(cache):
        cache = cache.append(KEYS, VALUES, count=jnp.asarray([9, 1]))
        cache = cache.append(KEYS[:, :4], VALUES[:, :4], count=jnp.asarray([4, 4]))
        return decode.attend_cache(Q[:, :1], cache)

    out = both(CACHES[name]())
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


# ------------------------------------------------------------------------------- many devices


@pytest.mark.parametrize("kind", sample([AxisType.Auto], [AxisType.Explicit], pytest.mark.slow))
def test_slots_over_eight_devices(kind, fresh_programs):
    """A step sends sums of its queries, not keys; every normalizer, also one of many passes."""
    mesh = jax.make_mesh((8,), ("sp",), axis_types=(kind,))
    # slots are axis 2 of what is stored, axis 1 of positions and votes
    spec = lambda x: PartitionSpec(*[None] * (x.ndim - 2), "sp") if x.ndim > 1 else PartitionSpec()
    place = lambda x: jax.device_put(x, NamedSharding(mesh, spec(x)))
    terms = {"mods": (mods.soft_cap(2.0),), "normalizer": normalizers.entmax(1.5)}

    @jax.jit
    def step(cache, q, k, v):
        cache = cache.append(k, v)
        return cache, decode.attend_cache(q, cache, **terms)

    one = decode.Dense.empty(B, 64, K, H)
    many = jax.tree.map(place, one)
    with jax.set_mesh(mesh):
        for part in (slice(0, 8), slice(8, 9)):
            inputs = [x[:, part] for x in (Q, KEYS, VALUES)]
            one, want = step(one, *inputs)
            text = step.lower(many, *inputs).compile().as_text()
            many, out = step(many, *inputs)
            near(out, want)
    assert many.k.sharding.spec[2] == "sp"
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    assert not [line for line in gathered if " f32[" in line]
