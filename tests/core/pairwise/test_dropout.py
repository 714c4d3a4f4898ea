"""Dropout of weights: the same pairs under every implementation, and what it does to a sum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import Blockwise, Dropout, Selection, attend, attention_weights, masks, mods
from attnjax import normalizers as norm
from attnjax.core.pairwise.triton import Triton
from attnjax.parallel import AllGather, Ring, Ulysses, shard
from tests import helpers
from tests.helpers import draw

B, T, N, K, H, D = 2, 12, 4, 2, 8, 6
RATE = 0.3
close = functools.partial(helpers.near, tolerance=2e-6)


def qkv():
    return helpers.qkv(B, T, N, H, K=K, D=D)


def dropped(q, k, **terms):
    """The weights after dropout, (B,N,T,S): attention over an identity matrix of values."""
    S = k.shape[1]
    eye = jnp.broadcast_to(jnp.eye(S)[None, :, None], (len(k), S, k.shape[2], S))
    return np.asarray(attend(q, k, eye, **terms)).swapaxes(1, 2)


def test_weights_are_kept_and_scaled_or_dropped_and_the_denominator_is_whole():
    q, k, v = qkv()
    drop = Dropout(RATE, jax.random.key(0))
    whole = np.asarray(attention_weights(q, k, mask=masks.causal), np.float64)
    part = dropped(q, k, mask=masks.causal, dropout=drop)
    kept = part != 0
    close(part, whole * kept / (1 - RATE))
    allowed = np.broadcast_to(np.tri(T, dtype=bool), kept.shape)
    assert 0.6 < kept[allowed].mean() < 0.8
    want = np.einsum("bnts,bsnd->btnd", part, np.repeat(np.float64(v), N // K, 2))
    close(attend(q, k, v, mask=masks.causal, dropout=drop), want)


CASES = {
    "plain": {},
    "relative": {"mods": (mods.relative_bias(draw(N, 5)),), "mask": masks.window(5, 1)},
    "two passes": {"normalizer": norm.clipped_softmax(-0.1, 1.1), "mask": masks.causal},
    "no division": {"normalizer": norm.sigmoid(0.0)},
    "of examples": {
        "mask": masks.causal,
        "q_positions": np.array([np.arange(T), np.arange(T) - 3]),
        "k_positions": np.array([np.arange(T), np.arange(T) - 3]),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_tiles_drop_the_same_pairs_in_value_and_gradient(case):
    terms = {**CASES[case], "dropout": Dropout(RATE, jax.random.key(1))}
    weigh = draw(B, T, N, D, seed=5)

    def both(impl):
        def loss(args):
            out = attend(*args, **terms, impl=impl)
            return (out * weigh).sum(), out

        return jax.jit(jax.grad(loss, has_aux=True))(qkv())

    close(both(Blockwise(block_q=5, block_k=4)), both("dense"))


def test_selected_blocks_drop_the_same_pairs():
    q, k, v = qkv()
    every = jnp.zeros((B, T // 2, N, 3), int) + jnp.arange(3)
    drop = Dropout(RATE, jax.random.key(2))
    for impl in ("dense", "blockwise"):
        got = attend(q, k, v, blocks=Selection(every, every >= 0, 2, 4), dropout=drop, impl=impl)
        close(got, attend(q, k, v, dropout=drop))


def test_relative_values_are_dropped_with_their_weights():
    q, k, v = qkv()
    table = draw(5, D, seed=3)
    at = 2 + np.clip(np.arange(T)[None] - np.arange(T)[:, None], -2, 2)
    drop = Dropout(RATE, jax.random.key(3))
    w = dropped(q, k, dropout=drop)
    want = np.einsum("bnts,bsnd->btnd", w, np.repeat(np.float64(v), N // K, 2))
    want += np.einsum("bnts,tsd->btnd", w, np.float64(table)[at])
    for impl in ("dense", Blockwise(block_q=5, block_k=4)):
        close(attend(q, k, mods.relative_values(v, table), dropout=drop, impl=impl), want)


@pytest.mark.parametrize(
    "strategy",
    [Ring("sp", "zigzag"), Ring("sp", "striped"), AllGather("sp"), Ulysses("sp", "zigzag")],
    ids=str,
)
def test_devices_drop_the_same_pairs(strategy):
    q, k, v = helpers.qkv(B, 16, N, H)
    mesh = jax.make_mesh((4,), ("sp",), axis_types=(jax.sharding.AxisType.Auto,))
    op = functools.partial(attend, mask=masks.causal, dropout=Dropout(RATE, jax.random.key(4)))
    loss = lambda op: jax.jit(jax.grad(lambda *x: jnp.sin(op(*x)).sum(), argnums=(0, 1, 2)))
    close(jax.jit(shard(op, mesh, strategy))(q, k, v), op(q, k, v))
    if strategy == Ring("sp", "zigzag"):
        close(loss(shard(op, mesh, strategy))(q, k, v), loss(op)(q, k, v))


def test_fates_are_fair_and_independent():
    q = jnp.zeros((2, 256, 2, 1))
    kept = dropped(q, q, dropout=Dropout(0.5, jax.random.key(5))) > 0
    sign = 2.0 * kept - 1
    limit = 5 / 256  # five standard deviations of a mean of 256 * 256 fair signs
    assert np.all(np.abs(sign.mean((2, 3))) < limit)
    for shifted in (np.roll(sign, 1, 2), np.roll(sign, 1, 3), sign[::-1], sign[:, ::-1]):
        assert np.all(np.abs((sign * shifted).mean((2, 3))) < limit)
    rows = sign @ sign.swapaxes(2, 3) / 256 - np.eye(256)
    columns = sign.swapaxes(2, 3) @ sign / 256 - np.eye(256)
    assert max(np.abs(rows).max(), np.abs(columns).max()) < 6 / 16
    other = dropped(q, q, dropout=Dropout(0.5, jax.random.key(6))) > 0
    assert abs((sign * (2.0 * other - 1)).mean()) < limit


def test_those_who_share_a_key_drop_the_same_pairs():
    q = jnp.zeros((2, 9, 4, 1))
    of = lambda keys: dropped(q, q, dropout=Dropout(0.5, keys))
    key = jax.random.key(7)
    shared = of(key[None, None])
    assert np.all(shared == shared[:1, :1])
    by_head = of(jax.random.split(key, (1, 4)))
    assert np.all(by_head == by_head[:1]) and np.any(by_head[:, 0] != by_head[:, 1])
    by_both = of(key)
    assert np.any(by_both[0] != by_both[1]) and np.any(by_both[:, 0] != by_both[:, 1])
    assert np.all(of(jax.random.PRNGKey(7)) == by_both)  # the older kind of key


def test_what_is_refused():
    q, k, v = qkv()
    key = jax.random.key(0)
    for rate in (float("nan"), -0.1, 1.0):
        with pytest.raises(ValueError, match=r"Dropout: rate is .*, expected a number in \[0, 1\)"):
            Dropout(rate, key)
    with pytest.raises(ValueError, match=r"Dropout: key has shape \(3, 1\), expected \(\) or"):
        attend(q, k, v, dropout=Dropout(0.5, jax.random.split(key, (3, 1))))
    with pytest.raises(ValueError, match="dropout of weights"):
        attend(q, k, v, dropout=Dropout(0.5, key), impl=Triton(interpret=True))
    close(attend(q, k, v, dropout=Dropout(0.0, key)), attend(q, k, v))
