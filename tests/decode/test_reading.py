"""A step that reads few slots is attention under the mask of those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, decode, masks, mods
from attnjax.core.blocks import select
from attnjax.ops import kv_decode
from tests.helpers import draw, near, qkv, sample

B, T, N, K, H = 2, 13, 4, 2, 4
Q, KEYS, VALUES = qkv(B, T, N, H, K=K, seed=1, scale=1.5)


@pytest.mark.parametrize("keep", sample([2], [9], pytest.mark.slow))
def test_the_best_blocks_are_read(keep):
    """Of means by hand: the first and the newest block and the best; of all it is attention."""
    block, size = 3, 11

    @jax.jit
    def step(q, k, v):
        cache = decode.Summed.empty(decode.Dense.empty(B, T, K, H), block=block)
        cache = cache.append(k[:, :8], v[:, :8], count=jnp.asarray([8, 7]))
        cache = cache.append(k[:, 8:size], v[:, 8:size], count=jnp.asarray([3, 1]))
        scores = cache.scores(q)
        return scores, decode.attend_top(q, cache.cache, scores, keep, block=block, **terms)

    terms = {"mods": (mods.alibi(mods.alibi_slopes(N)),)}
    scores, out = step(Q[:, 8:9], KEYS, VALUES)
    for b, at in enumerate((np.arange(9), np.r_[:7, 8])):  # one token of the newest call stands
        k, v, q = (x[b : b + 1, at] for x in (KEYS, VALUES, Q))
        whole = np.concatenate([np.asarray(k[0]), np.asarray(KEYS[b, 9:size])])[
            : 11 if b == 0 else 8
        ]
        means = [whole[i : i + block].mean(0) for i in range(0, len(whole), block)]
        want = np.einsum("nkh,kgh->nk", means, np.asarray(Q[b, 8]).reshape(K, N // K, H))
        inside = slice(1, len(means) - 1)
        near(scores[b, inside], want[inside])
        assert np.isinf(scores[b, [0, len(means) - 1]]).all()
        assert (scores[b, len(means) :] == -np.inf).all()
        seen = np.zeros((1, N, 1, len(at)), bool)
        for head in range(K):
            for c in np.argsort(-np.asarray(scores[b, :, head]), kind="stable")[:keep]:
                seen[0, head * N // K : (head + 1) * N // K, 0, c * block : (c + 1) * block] = True
        place = {"q_positions": np.array([len(at) - 1])}
        mask = masks.array(jnp.asarray(seen)) & masks.causal
        near(out[b], attend(q[:, -1:], k, v, mask=mask, **place, **terms)[0])


def test_loki_is_a_score_of_slots():
    """The last row of the op, whose query heads have keys of their own."""
    q, k, v = qkv(B, T, N, H, seed=3)
    basis, rank, keep = draw(N, H, H, seed=4), 2, 5
    want = kv_decode.loki_attention(q, k, v, basis, rank=rank, keep=keep)[:, -1:]
    cache = decode.Dense.empty(B, T + 2, N, H).append(k[:, :-1], v[:, :-1])
    cache = cache.append(k[:, -1:], v[:, -1:])
    low = [jnp.einsum("BTNH,NHR->BTNR", x, basis[..., :rank]) for x in (q[:, -1:], cache.read()[0])]
    scores = jnp.swapaxes(select.dot_scores(*low)[:, 0], 1, 2)
    scores = jnp.where(cache.positions >= 0, scores, -jnp.inf)
    near(decode.attend_top(q[:, -1:], cache, scores, keep), want)


def test_scores_that_do_not_fit_are_told():
    cache = decode.Dense.empty(B, 10, K, H)
    with pytest.raises(
        ValueError, match=r"expected \(B,n,X\) with n = ceil\(L / block\) = 4 and X"
    ):
        decode.attend_top(Q[:, :1], cache, jnp.zeros((B, 5, K)), 2, block=3)
