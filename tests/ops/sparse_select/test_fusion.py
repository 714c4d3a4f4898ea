"""Token fusion: its oracles, sizes that sum to the text, rows that sum to one, protected tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, attention_weights
from attnjax.ops.sparse_select import fuse_tokens, fusion_groups, size_bias, token_mass
from tests.helpers import draw, draws, near, qkv, run
from tests.ops.plain import unit

B, T, N, K, H, W = 2, 11, 4, 2, 8, 6


def fusion_groups_oracle(tokens, mass, size, drop=16, protected=1, t_sim=1, t_info=20, t_size=40):
    out = np.zeros(tokens.shape[:2])
    for b, (x, a, s) in enumerate(zip(unit(tokens), mass, size, strict=True)):
        u, z = (1 / a) / (1 / a).max(), (1 / s) / (1 / s).max()

        def fit(i, j, x=x, u=u, z=z):
            alike = ((1 + x[i] @ x[j]) / 2) ** (1 / t_sim)
            return alike * (u[i] * u[j]) ** (1 / t_info) * (z[i] * z[j]) ** (1 / t_size)

        even, odd = (list(range(p, len(x), 2)) for p in (0, 1))
        free = lambda tokens: [i for i in tokens if i >= protected]
        join = joined(free(even), free(odd), fit, drop // 2)
        left = [i for i in free(even) if i not in join]
        join |= joined(free(odd), left, fit, drop - drop // 2)

        def head(i, join=join):
            return i if i not in join else head(join[i])

        heads = sorted({head(i) for i in range(len(x))})
        out[b] = [heads.index(head(i)) for i in range(len(x))]
    return out


def joined(these, those, fit, count):
    """{i: j} of the `count` of these that one of those fits best."""
    best = {i: max(those, key=lambda j, i=i: fit(i, j)) for i in these if those}
    ordered = sorted(best, key=lambda i: fit(i, best[i]), reverse=True)
    return {i: best[i] for i in ordered[:count]}


def fuse_tokens_oracle(tokens, weight, groups, count):
    out = np.zeros((len(tokens), count, *tokens.shape[2:]))
    for b, g in np.ndindex(len(tokens), count):
        at = [i for i in range(tokens.shape[1]) if groups[b, i] == g]
        if at:
            out[b, g] = sum(weight[b, i] * tokens[b, i] for i in at) / weight[b, at].sum()
    return out


def text():
    tokens = draw(B, T, W)
    mass, size = (jnp.exp(x) for x in draws((B, T), (B, T), seed=1))
    return tokens, mass, size


@pytest.mark.parametrize("drop", [0, 1, 4, 5])
def test_so_many_tokens_are_left_and_the_first_stays_alone(drop):
    tokens, mass, size = text()
    groups = np.asarray(run(fusion_groups, tokens, mass, size, drop=drop))
    for row in groups:
        assert sorted(set(row)) == list(range(T - drop)) and list(row).count(row[0]) == 1
    sums = jnp.zeros((B, T - drop)).at[jnp.arange(B)[:, None], groups].add(size)
    near(sums.sum(1), size.sum(1), 1e-4)


def test_an_odd_token_that_an_even_one_joined_joins_on():
    tokens = jnp.eye(8)[jnp.array([0, 1, 2, 3, 4, 5, 6, 7, 3])]  # 8 is 3
    tokens = tokens.at[2].set(0.6 * tokens[2] + 0.8 * tokens[3])[None]  # and 2 is like it
    got = lambda drop: list(np.asarray(fusion_groups(tokens, *jnp.ones((2, 1, 9)), drop=drop)[0]))
    assert got(1) == [0, 1, 2, 7, 3, 4, 5, 6, 7]
    assert got(2) == [0, 1, 2, 2, 3, 4, 5, 6, 2]


def test_a_map_one_step_ahead_has_the_weights_of_a_group_summed_and_rows_averaged():
    q, k, _ = qkv(B, T, N, H, K=K)
    tokens, _, size = text()
    mass = run(token_mass, q, k, size)
    bias = size_bias(size, K)
    A = np.asarray(attention_weights(q, k, mods=(bias,)))
    near(mass, A.mean((1, 2)))
    groups, M = run(fusion_groups, tokens, mass, size, drop=4), T - 4
    v = draw(B, M, K, H)
    each = jnp.take_along_axis(v, groups[..., None, None], axis=1)
    weight = mass * size
    out = fuse_tokens(attend(q, k, each, mods=(bias,)), weight, groups, M)
    member = np.eye(M)[np.asarray(groups)]
    rows = member * np.asarray(weight)[..., None]
    rows /= rows.sum(1, keepdims=True)
    pooled = np.einsum("BTg,BNTS,BSm->BNgm", rows, A, member)
    near(pooled.sum(-1), np.ones((B, N, M)))
    near(out, np.einsum("BNgm,BmNH->BgNH", pooled, np.repeat(v, N // K, axis=2)))


def test_fewer_tokens_than_shall_go():
    with pytest.raises(ValueError, match="drop: 6; expected 0 to 5 of T = 11 tokens"):
        fusion_groups(*text(), drop=6)
