"""Two-level attention: its oracle, and one attention to all tokens that it equals."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, attend_state, mods, normalizers
from attnjax.ops.multihead_structure import two_level_attention
from tests.helpers import draws, exact, near, run
from tests.ops.plain import softmax


def two_level_attention_oracle(q, tokens, cells, visible=None):
    (B, T, N, H), C = q.shape, tokens.shape[1]
    a, out = np.zeros_like(q), np.zeros_like(q)
    for b, t, n in np.ndindex(B, T, N):
        seen = [c for c in range(C) if visible is None or np.asarray(visible)[b, c].any()]
        beta = softmax(cells[b, seen, n] @ q[b, t, n] / np.sqrt(H))
        for weight, c in zip(beta, seen, strict=True):
            rows = tokens[b, c, :, n]
            rows = rows if visible is None else rows[np.asarray(visible)[b, c]]
            a[b, t, n] += weight * (softmax(rows @ q[b, t, n] / np.sqrt(H)) @ rows)
    for b, t, n in np.ndindex(B, T, N):
        out[b, t, n] = softmax(a[b, :, n] @ q[b, t, n] / np.sqrt(H)) @ a[b, :, n]
    return out


def test_padding_and_empty_cells_are_not_read():
    q, tokens, cells = draws((2, 5, 2, 8), (2, 3, 4, 2, 8), (2, 3, 2, 8))
    visible = np.ones((2, 3, 4), bool)
    visible[0, 1, 2:] = visible[1, 2] = False
    padded = jnp.where(visible[..., None, None], tokens, jnp.nan)
    got = run(two_level_attention, q, padded, cells, visible=jnp.asarray(visible))
    near(got, two_level_attention_oracle(*exact((q, tokens, cells)), visible))


def test_it_is_one_attention_with_a_bias_for_each_cell():
    q, tokens, cells = draws((2, 5, 1, 8), (2, 3, 4, 1, 8), (2, 3, 1, 8))

    @jax.jit
    def flat(q, tokens, cells):
        k = tokens.reshape(2, 12, 1, 8)
        beta = jax.nn.log_softmax(jnp.einsum("btnh,bcnh->bntc", q, cells) / np.sqrt(8))
        states = [attend_state(q, tokens[:, c], tokens[:, c, :, :, :0]) for c in range(3)]
        mass = jnp.concatenate([normalizers.log_sum(s) for s in states], axis=-1)
        a = attend(q, k, k, mods=(mods.pair_bias(jnp.repeat(beta - mass, 4, axis=-1)),))
        return attend(q, a, a)

    near(jax.jit(two_level_attention)(q, tokens, cells), flat(q, tokens, cells))
