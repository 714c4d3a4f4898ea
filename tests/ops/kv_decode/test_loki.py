"""Low-rank ranking of keys: the oracle; full rank, and bases of keys."""

import numpy as np

from attnjax.ops.kv_decode import key_basis, loki_attention, tidal_attention
from tests.helpers import draw, near, qkv
from tests.ops.kv_decode.test_tidal import tidal_attention_oracle


def loki_attention_oracle(q, k, v, basis, rank, keep, allowed=None):
    N, K = q.shape[2], k.shape[2]
    low = lambda x, heads: np.stack(
        [np.nan_to_num(x[:, :, n]) @ basis[heads(n), :, :rank] for n in range(x.shape[2])], axis=2
    )
    low_q, low_k = low(q, lambda n: n * K // N), low(k, lambda n: n)
    return tidal_attention_oracle(q, k, v, low_q, low_k, keep, allowed)


def test_in_all_dimensions_of_a_basis_scores_choose_themselves():
    q, k, v = qkv(2, 9, 4, 8, K=2)
    basis = key_basis(k)
    full = loki_attention(q, k, v, basis, rank=8, keep=4)
    near(full, tidal_attention(q, k, v, q, k, keep=4))
    assert np.abs(loki_attention(q, k, v, basis, rank=1, keep=4) - full).max() > 0.01


def test_a_basis_is_orthonormal_and_its_first_directions_hold_most_of_the_keys():
    k = draw(2, 30, 2, 8) * np.linspace(0.1, 2.0, 8)
    basis = np.asarray(key_basis(k))
    near(np.einsum("kha,khb->kab", basis, basis), np.broadcast_to(np.eye(8), (2, 8, 8)))
    size = np.square(np.einsum("bskh,khr->bskr", k, basis)).sum((0, 1))
    assert (np.diff(size, axis=-1) < 0).all()
    most = [np.linalg.norm(k[:, :, n].reshape(-1, 8), 2) ** 2 for n in range(2)]
    near(size[:, 0], most, 1e-4)
