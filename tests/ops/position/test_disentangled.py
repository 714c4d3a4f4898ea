"""Disentangled attention: its oracles, two tokens by hand, and tables that do not fit."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.position import disentangled_as_printed, disentangled_attention
from tests.helpers import draws, near, qkv
from tests.ops.plain import blend, weights

B, T, N, H = 2, 9, 4, 8


def disentangled_attention_oracle(q, k, v, q_rel, k_rel, allowed=None):
    return _disentangled(q, k, v, q_rel, k_rel, allowed, lambda i, j: (i, j))


def disentangled_as_printed_oracle(q, k, v, q_rel, k_rel, allowed=None):
    return _disentangled(q, k, v, q_rel, k_rel, allowed, lambda i, j: (j, i))


def _disentangled(q, k, v, q_rel, k_rel, allowed, pair_of_key):
    (_, _, N, H), K = q.shape, k.shape[2]
    far = len(k_rel) // 2

    def delta(i, j):
        if i - j <= -far:
            return 0
        return 2 * far - 1 if i - j >= far else i - j + far

    def score(b, n, i, j):
        query, key = q[b, i, n], k[b, j, n * K // N]
        of_position = query @ k_rel[delta(i, j), n] + key @ q_rel[delta(*pair_of_key(i, j)), n]
        return (query @ key + of_position) / np.sqrt(3 * H)

    return blend(weights(q, k, allowed, logit=score), v)


@pytest.mark.parametrize(
    ("op", "want"),
    [
        (disentangled_attention, (0.6405, 0.6405)),  # q_rel 3, 2 and 4, 3
        (disentangled_as_printed, (0.3595, 0.3595)),  # q_rel 3, 4 and 2, 3
    ],
)
def test_two_tokens_by_hand(op, want):
    """m = 2: only keys meet a table, 1 2 3 4, and the first of two values counts."""
    q, k, v = (jnp.asarray(x).reshape(1, 2, 1, 1) for x in ([0.0, 0.0], [1.0, 1.0], [1.0, 0.0]))
    q_rel = jnp.arange(1.0, 5.0).reshape(4, 1, 1)
    near(op(q, k, v, q_rel, 0 * q_rel)[0, :, 0, 0], want, 5e-5)


def test_disentangled_attention_refuses_tables_that_do_not_fit():
    q, k, v = qkv(B, T, N, H)
    odd, even = draws((5, N, H), (6, N, H))
    with pytest.raises(ValueError, match=r"q_rel, k_rel: \(5, 4, 8\) .* expected"):
        disentangled_attention(q, k, v, odd, odd)
    with pytest.raises(ValueError, match=r"q_rel, k_rel: \(6, 4, 8\) and \(5, 4, 8\)"):
        disentangled_attention(q, k, v, even, odd)
