"""Block-attention: its oracle, cached passages that move, what a passage may depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks
from attnjax.core.positions import rotary
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import assemble, block_attention, reindex
from tests.helpers import draws, exact, near, qkv
from tests.ops.plain import blend, both, weights

B, T, N, K, H = 2, 13, 4, 2, 8


def block_attention_oracle(q, k, v, blocks, allowed=None):
    (B, T), S = q.shape[:2], k.shape[1]
    ids = np.broadcast_to(blocks, (B, T))
    seen = np.zeros((B, 1, T, S), bool)
    for b, i, j in np.ndindex(B, T, S):
        real = ids[b, i] >= 0 and ids[b, j] >= 0
        final = ids[b, i] == max(ids[b])
        seen[b, 0, i, j] = j <= i and real and (ids[b, i] == ids[b, j] or final)
    return blend(weights(q, k, both(seen, allowed)), v)


def test_reindexed_keys_are_those_of_the_place():
    (k,) = draws((B, 5, K, H))
    at = jnp.arange(5)
    for offset, places in ((7, at + 7), (jnp.array([0, 30]), at + jnp.array([[0], [30]]))):
        near(reindex(rotary(k, at), offset), rotary(k, places), 1e-5)
    assert jnp.abs(reindex(k, 1) - k).max() > 0.1


IDS = np.repeat([0, 1, 2], (4, 3, 6))  # two passages and the question


def test_cached_passages_and_the_question_give_what_one_pass_gives():
    """Through two layers, so that the second one's keys depend on what the first one saw."""
    x, *maps = draws((B, T, 2 * H), *((2 * H, 2, H),) * 6)
    first, second = maps[:3], maps[3:]

    def turned(maps, x, start=0):
        q, k, v = (jnp.einsum("btw,wnh->btnh", x, m) / 4 for m in maps)
        at = jnp.arange(start, start + x.shape[1])
        return rotary(q, at), rotary(k, at), v

    def layer(maps, x, op, start=0):
        q, k, v = turned(maps, x, start)
        return x + op(q, k, v).reshape(x.shape), (k, v)

    masked = functools.partial(block_attention, blocks=IDS)
    whole = layer(second, layer(first, x, masked)[0], masked)[0]

    alone = functools.partial(attend, mask=masks.causal)
    hidden, caches = zip(
        *(layer(first, x[:, IDS == block], alone) for block in (0, 1)), strict=True
    )
    deep = [layer(second, h, alone)[1] for h in hidden]

    def behind(cached):
        k, v = assemble(cached)
        to_end = lambda *own: attend(
            own[0],
            *(jnp.concatenate(pair, axis=1) for pair in zip((k, v), own[1:], strict=True)),
            mask=masks.causal_to_end,
        )
        return to_end

    question, _ = layer(first, x[:, 7:], behind(caches), start=7)
    question, _ = layer(second, question, behind(deep), start=7)
    near(question, whole[:, 7:])
    unmoved, _ = layer(first, x[:, 7:], behind([caches[0], (caches[1][0] * 0, caches[1][1])]), 7)
    assert jnp.abs(unmoved - layer(first, x, masked)[0][:, 7:]).max() > 1e-2


def test_a_passage_does_not_depend_on_the_others():
    q, k, v = qkv(B, T, N, H, K=K)
    out = block_attention(q, k, v, IDS)
    q2, k2, v2 = (x.at[:, 4:7].set(9.0) for x in (q, k, v))
    changed = block_attention(q2, k2, v2, IDS)
    assert np.array_equal(changed[:, :4], out[:, :4])
    assert (jnp.abs(changed - out)[:, 7:].max((2, 3)) > 1e-3).all()
    near(out[:, 4:7], multi_head_attention(q[:, 4:7], k[:, 4:7], v[:, 4:7], mask=masks.causal))


def test_blocks_differ_by_example_and_padding_is_in_none():
    q, k, v = qkv(B, T, N, H, K=K)
    ids = np.stack([IDS, np.r_[IDS[:6], np.ones(5, int), -1, -1]])
    got = jax.jit(block_attention)(q, k, v, jnp.asarray(ids))
    near(got, block_attention_oracle(*exact((q, k, v)), ids))
    assert not got[1, 11:].any() and got[1, :11].all()
    with pytest.raises(ValueError, match=r"blocks: shape \(2,\); expected \(T,\) or \(B,T\)"):
        block_attention(q, k, v, [0, 1])
