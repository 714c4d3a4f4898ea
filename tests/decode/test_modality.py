"""Budgets by kind: what stays of images and of text, the core, the law of budgets."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, decode, masks
from attnjax.decode import modality
from tests.helpers import near, qkv
from tests.ops.plain import weights

B, T, N, K, H = 2, 12, 4, 2, 4
Q, KEYS, VALUES = qkv(B, T, N, H, K=K, seed=3, scale=1.5)
IMAGE = (np.arange(T) >= 2) & (np.arange(T) < 8)
PROMPT = 10


def prompted(heads=K):
    told = jnp.broadcast_to(jnp.asarray(IMAGE, float)[None, :, None], (B, T, K))
    cache = decode.Dense.empty(B, T, K, H, heads=heads, extra=((),))
    cache = cache.append(KEYS[:, :PROMPT], VALUES[:, :PROMPT], (told[:, :PROMPT],))
    return cache, told


def held(cache):
    """(B,T,X) which tokens stand in the cache."""
    return (np.asarray(cache.positions)[:, None] == np.arange(T)[:, None, None]).any(2)


def step(cache, told, policy, at):
    part = slice(at, at + 1)
    cache = cache.append(KEYS[:, part], VALUES[:, part], (told[:, part],))
    out = decode.attend_cache(Q[:, part], cache)
    return out, policy(Q[:, part], cache)


def test_images_by_the_last_token_of_the_prompt_and_text_by_sums():
    policy = modality.a_vl(3, 3, recent=1)
    cache, told = prompted()
    cache = policy(Q[:, :PROMPT], cache)
    w = weights(np.float64(Q), np.float64(KEYS), np.tri(T, dtype=bool))[:, :, :PROMPT, :PROMPT]
    last = w[:, :, -1].sum(1)
    sums = w.reshape(B, K, N // K, PROMPT, PROMPT).sum((2, 3))
    texts = np.flatnonzero(~IMAGE[:PROMPT])
    for b, x in np.ndindex(B, K):
        best = sorted(np.flatnonzero(IMAGE), key=lambda j, b=b: -last[b, j])[:3]
        text = sorted(texts[:-1], key=lambda j, b=b, x=x: -sums[b, x, j])[:2]
        assert held(cache)[b, :, x].nonzero()[0].tolist() == sorted([*best, *text, texts[-1]])
    images = held(cache)[:, IMAGE]
    for at in range(PROMPT, T):
        _, cache = step(cache, told, policy, at)
        assert held(cache).sum(1).max() <= policy.budget
        np.testing.assert_array_equal(held(cache)[:, IMAGE], images)


def test_budgets_for_all_are_full_attention_and_a_core_of_all_too():
    policy = modality.a_vl(6, T)
    cache, told = prompted()
    cache, outs = policy(Q[:, :PROMPT], cache), []
    for at in range(PROMPT, T):
        out, cache = step(cache, told, policy, at)
        outs.append(out)
    want = attend(Q, KEYS, VALUES, mask=masks.causal)[:, PROMPT:]
    near(jnp.concatenate(outs, 1), want)
    near(decode.attend_top(Q[:, -1:], cache, modality.core_scores(cache), T), want[:, -1:])


def test_the_core_is_of_what_is_held_and_follows_the_query():
    cache, _ = prompted(heads=1)
    cache = modality.a_vl(4, 8)(Q[:, :PROMPT], cache)
    scores = np.asarray(modality.core_scores(cache))
    there = np.asarray(cache.positions) >= 0
    assert (scores[~there] == -np.inf).all() and (scores == np.inf).sum(1).max() == 4
    again = modality.voted_again(Q[:, PROMPT - 1 : PROMPT] * -1, cache)
    assert (np.asarray(again.votes) != np.asarray(cache.votes)).any()


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="images, texts, recent are 3, 2, 4; expected"):
        modality.a_vl(3, 2, recent=4)
