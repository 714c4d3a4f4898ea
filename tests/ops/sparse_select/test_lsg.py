"""LSG attention: its oracle, what each reduction keeps, how far a token reaches."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.sparse_select import largest_keys, lsg_attention, strided_keys, strided_parts
from tests.helpers import qkv, run, weights_of
from tests.ops.plain import blend, both, cut_tail, weights

B, T, N, K, H = 2, 19, 4, 2, 4


def lsg_attention_oracle(q, k, v, block, factor, leading=1, allowed=None):
    (B, S, K, _), N = k.shape, q.shape[2]
    blocks = cut_tail(S - leading, block)
    seen = np.zeros((B, N, S, S), bool)
    seen[:, :, :leading] = True
    seen[..., :leading] = True
    for b, n, (u, rows), (c, tokens) in (
        (b, n, *pair)
        for b, n in np.ndindex(B, N)
        for pair in ((x, y) for x in enumerate(blocks) for y in enumerate(blocks))
    ):
        tokens = [leading + j for j in tokens]
        length = {j: np.linalg.norm(k[b, j, n * K // N]) for j in tokens}
        if abs(u - c) > 1:
            tokens = sorted(tokens, key=length.get)[-(block // factor) :]
        if abs(u - c) <= 1 + factor:
            seen[b, n, leading + rows[0] : leading + rows[-1] + 1, tokens] = True
    return blend(weights(q, k, both(allowed, seen)), v)


weigh = functools.partial(weights_of, functools.partial(run, lsg_attention))


@pytest.mark.parametrize("causal", [False, True])
def test_a_token_reaches_so_many_blocks_and_global_tokens_all(causal):
    q, k, _ = qkv(B, T, N, H, K=K)
    mask = masks.causal if causal else masks.everything
    w = weigh(q, k, block=2, factor=2, leading=1, mask=mask)
    ok = np.tri(T, dtype=bool) if causal else np.ones((T, T), bool)
    assert ((w > 0) <= ok).all() and ((w > 0)[:, :, 0] == ok[0]).all() and (w[..., 0] > 0).all()
    for i, j in np.ndindex(T - 1, T - 1):
        apart = abs(i // 2 - j // 2)
        seen = w[:, :, i + 1, j + 1] > 0
        assert seen.all() if apart <= 1 and ok[i + 1, j + 1] else True
        assert not seen.any() if apart > 3 else True
    sums = (w[:, :, 9:11] > 0).sum(-1)  # block 4 of 9: 3 blocks, 2 tokens left and right, 1 global
    assert (sums == ([3 + 2 + 1, 4 + 2 + 1] if causal else 6 + 4 + 1)).all()


def test_reductions_keep_a_share_of_each_block():
    k = qkv(1, 8, 3, H)[1].at[0, [1, 3, 4, 7]].multiply(100.0)
    assert sorted(np.asarray(largest_keys(k, 4, 2)[0, :, 0])) == [1, 3, 4, 7]
    steps = np.asarray(strided_keys(k, 4, 2)[0]).T
    assert (steps == [[0, 2, 4, 6], [1, 3, 5, 7], [0, 2, 4, 6]]).all()
    parts = np.asarray(strided_parts(k, 4, 2)[0]).T
    assert (parts == [[0, 1, 4, 5], [2, 3, 6, 7], [0, 1, 4, 5]]).all()


@pytest.mark.parametrize("choose", [strided_keys, strided_parts])
def test_places_that_heads_begin_at(choose):
    q, k, _ = qkv(1, 17, 2, H)
    w = weigh(q, k, block=4, factor=2, leading=0, choose=choose)
    far = np.flatnonzero(w[0, 0, 0, 8:] > 0) + 8, np.flatnonzero(w[0, 1, 0, 8:] > 0) + 8
    kept = np.asarray(choose(jnp.zeros((1, 17, 2, 1)), 4, 2))[0]
    for head, got in enumerate(far):
        assert list(got) == [j for j in kept[:, head] if 8 <= j < 16]
    assert not set(far[0]) & set(far[1])


@pytest.mark.parametrize("given", [{"block": 3}, {"factor": 0}, {"leading": -1}])
def test_sizes_that_do_not_fit(given):
    with pytest.raises(ValueError, match="expected factor to divide block"):
        lsg_attention(*qkv(B, T, N, H, K=K), **({"block": 4} | given))
