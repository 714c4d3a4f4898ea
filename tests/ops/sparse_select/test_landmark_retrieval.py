"""Landmark retrieval: its oracle, few blocks, heads that retrieve together, what is refused."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import masks
from attnjax.core.positions import rotary
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import landmark_attention, landmark_retrieval
from tests.helpers import exact, near, qkv
from tests.ops.plain import blend, causal_too, landmark_weights

B, T, N, K, H = 2, 19, 4, 2, 8  # tokens: four blocks of three and a landmark, and three more


def _turned(x, position, base):
    half = len(x) // 2
    angle = position * base ** (-np.arange(half) / half)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def landmark_retrieval_oracle(q, k, v, block, top_k, base, heads=None, allowed=None):
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    group = block + 1
    own = lambda i: i // group

    def logit(b, n, i, j):
        """With the query behind a prefix of top_k + 1 blocks, of which the first is for all old."""
        at = (top_k + 1) * group + i % group
        slot = max(top_k + 1 - (own(i) - own(j)), 0)
        turned = (
            _turned(q[b, i, n], at, base),
            _turned(k[b, j, n * K // N], slot * group + j % group, base),
        )
        return turned[0] @ turned[1] / np.sqrt(H)

    seen, X = {}, heads or N
    for b, n, i in np.ndindex(B, N, T):
        together = [m for m in range(N) if m * X // N == n * X // N]
        likes = {
            c: max(logit(b, m, i, c * group + block) for m in together)
            for c in range(min(own(i), S // group))
        }
        # a query behind all keys has no own block, and one more of the others
        count = top_k if own(i) * group < S else top_k + 1
        seen[b, n, i] = [own(i), *sorted(likes, key=lambda c: -likes[c])[:count]]
    ok = causal_too(q, k, allowed)
    return blend(landmark_weights(q, k, block, ok, seen, logit), v)


def test_few_blocks_retrieved_are_not_all_blocks():
    q, k, v = qkv(B, T, N, H, K=K)
    whole = landmark_attention(q, k, v, block=3)
    near(landmark_retrieval(q, k, v, block=3, top_k=4), whole)
    few = landmark_retrieval(q, k, v, block=3, top_k=1)
    near(few[:, :8], whole[:, :8])  # they have no more than one block to retrieve
    assert jnp.abs(few - whole)[:, 8:].max() > 0.05
    none = landmark_retrieval(q, k, v, block=3, top_k=0)
    inside = masks.causal & masks.document(np.arange(T) // 4)
    inside = inside & ~masks.document(np.arange(T) % 4 - 4, np.arange(T) % 4 - 3)
    ordinary = np.arange(T) % 4 != 3
    near(
        none[:, ordinary],
        multi_head_attention(q, k, v, mask=inside)[:, ordinary],
    )


@pytest.mark.parametrize("heads", [1, K])
def test_heads_that_retrieve_together_follow_the_largest_score(heads):
    q, k, v = qkv(B, T, N, H, K=K)
    sizes = {"block": 3, "top_k": 1, "base": 10.0}
    together = landmark_retrieval(q, k, v, heads=heads, **sizes)
    near(together, landmark_retrieval_oracle(*exact((q, k, v)), heads=heads, **sizes))
    assert jnp.abs(together - landmark_retrieval(q, k, v, **sizes)).max() > 0.05


def test_blocks_far_behind_share_one_place():
    """Two old blocks change places: their distance is cut off, so nobody far ahead notices."""
    q, k, v = qkv(B, T, N, H, K=K)
    order = np.r_[4:8, 0:4, 8:T]  # blocks 0 and 1
    op = functools.partial(landmark_retrieval, q, block=3, top_k=1)
    near(op(k[:, order], v[:, order], base=10.0)[:, 12:], op(k, v, base=10.0)[:, 12:])
    at = jnp.arange(T)
    turned = lambda k: landmark_retrieval(
        rotary(q, at, 10.0), rotary(k, at, 10.0), v[:, order], block=3, top_k=4
    )
    assert jnp.abs(turned(k[:, order]) - turned(k))[:, 12:].max() > 0.05


def test_landmarks_tell_what_does_not_fit():
    q, k, v = qkv(B, T, N, H, K=K)
    for op in (landmark_attention, landmark_retrieval):
        with pytest.raises(ValueError, match="block: 0; expected an integer of at least 1"):
            op(q, k, v, block=0)
    with pytest.raises(ValueError, match="top_k: -1; expected an integer of at least 0"):
        landmark_retrieval(q, k, v, top_k=-1)
    with pytest.raises(ValueError, match="heads: 3; expected None, N = 4, K = 2 or 1"):
        landmark_retrieval(q, k, v, heads=3)
