"""Group attention: its oracle, exact groups, the bound of its error, the order of groups."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.low_rank import group_attention, key_groups
from attnjax.ops.softmax_core import multi_head_attention
from tests.helpers import draw, draws, exact, near, qkv, run, weights_of
from tests.ops.plain import blend, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def by_k_means(keys, groups, rounds):
    """The group of each key, and the mean of the keys of its group."""
    S = len(keys)
    groups = min(groups, S)
    centers = [keys[g * S // groups] for g in range(groups)]
    for again in range(rounds):
        if again:
            members = [keys[group == g] for g in range(groups)]
            centers = [x.mean(0) if len(x) else 0 * keys[0] for x in members]
        group = np.array([np.argmin([((x - c) ** 2).sum() for c in centers]) for x in keys])
    return group, np.array([keys[group == g].mean(0) for g in group])


def group_attention_oracle(q, k, v, groups, rounds):
    instead = np.zeros(k.shape)
    for b, g in np.ndindex(len(k), k.shape[2]):
        instead[b, :, g] = by_k_means(k[b, :, g], groups, rounds)[1]
    return blend(weights(q, instead, None), v)


def test_equal_keys_make_exact_groups():
    q, (few, v) = draw(B, T, N, H), draws((B, 3, K, H), (B, T, K, H))
    k = few[:, np.arange(T) % 3]
    near(group_attention(q, k, v, groups=jnp.array([2, 0, 4])), multi_head_attention(q, k, v))


def test_a_weight_is_within_the_bound_and_near_for_many_groups():
    q, k, _ = qkv(B, T, N, H, K=K)
    weigh = lambda op, **given: weights_of(functools.partial(run, op), q, k, **given)
    true = weigh(multi_head_attention)
    gaps = []
    for groups in (2, 6, T):
        got = weigh(group_attention, groups=groups)
        near(got.sum(-1), np.ones((B, N, T)))
        far = np.zeros((B, K))
        for b, g in np.ndindex(B, K):
            keys = exact(k)[b, :, g]
            means = by_k_means(keys, groups, 3)[1]
            far[b, g] = np.sqrt(((keys - means) ** 2).sum(-1)).max()
        length = np.linalg.norm(q, axis=-1).transpose(0, 2, 1)[..., None]
        bound = 2 * length * np.repeat(far, N // K, 1)[..., None, None] / np.sqrt(H)
        assert (np.abs(np.log(got / true)) <= bound + 1e-4).all()
        gaps.append(np.abs(got - true).max())
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-5


def test_the_order_of_groups_does_not_matter_and_empty_ones_do_not_count():
    q, k, v = qkv(B, T, N, H, K=K)
    some = jnp.array([5, 0, 7])
    got = group_attention(q, k, v, groups=some)
    near(group_attention(q, k, v, groups=some[::-1]), got)
    twice = jnp.array([5, 0, 7, 5])  # of two equal centers the second stays empty, then stands at 0
    once = group_attention(q, k, v, groups=some, rounds=1)
    near(group_attention(q, k, v, groups=twice, rounds=1), once)
    assert (key_groups(k, groups=twice, rounds=1) < 3).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"groups": 0}, "groups: 0; expected at least 1"), ({"rounds": 0}, "rounds: 0; expected")],
)
def test_what_is_no_grouping(given, message):
    with pytest.raises(ValueError, match=message):
        group_attention(*qkv(B, T, N, H, K=K), **given)
