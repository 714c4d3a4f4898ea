"""The delta rule: its oracle; what a state holds for a key, replaced, reflected or left."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.recurrence.linear import linear_attend
from attnjax.ops.linear_recurrent import delta_net
from tests.helpers import draws, near, orthonormal, qkv
from tests.ops.linear_recurrent.test_gated_delta_net import gated_delta_net_oracle

B, T, N, H = 2, 9, 4, 8


def delta_net_oracle(q, k, v, beta):
    return gated_delta_net_oracle(q, k, v, beta, np.zeros_like(beta))


def orthonormal_keys():
    """T = H keys for each head."""
    return orthonormal(B, N, H, H).swapaxes(1, 2)


def test_delta_net_stores_orthonormal_keys_exactly():
    k, (v,) = orthonormal_keys(), draws((B, H, N, H))
    ones = jnp.ones((B, H, N))
    _, state = delta_net(k, k, v, ones, return_state=True)
    held = jnp.einsum("BTNH,BNHD->BTND", k, state.memory, precision="highest")
    near(held, v)
    near(delta_net(k, k, v, ones), linear_attend(k, k, v))  # nothing to correct


def test_the_delta_rule_replaces_what_a_key_held():
    """Written twice: sums read back both values, the delta rule with beta = 1 the new one."""
    k, (old, new) = orthonormal_keys(), draws((B, H, N, H), (B, H, N, H))
    twice = jnp.concatenate([k, k[:, :1]], axis=1)
    values = jnp.concatenate([old, new[:, :1]], axis=1)
    out = delta_net(twice, 3.0 * twice, values, jnp.ones((B, H + 1, N)))
    near(out[:, -1], new[:, 0])
    near(linear_attend(twice, twice, values)[:, -1], old[:, 0] + new[:, 0])
    half = delta_net(twice, twice, values, jnp.ones((B, H + 1, N)).at[:, -1].set(0.5))
    near(half[:, -1], (old[:, 0] + new[:, 0]) / 2)
    others = delta_net(
        jnp.concatenate([twice, k[:, 1:]], axis=1),
        jnp.concatenate([twice, k[:, 1:]], axis=1),
        jnp.concatenate([values, values[:, 1:-1]], axis=1),
        jnp.ones((B, 2 * H, N)).at[:, H + 1 :].set(0.0),
    )
    near(others[:, H + 1 :], old[:, 1:])  # other keys keep theirs


def test_beta_of_two_reflects_a_state():
    """I - 2 k k^T has the eigenvalue -1: the value that a key holds changes its sign."""
    k, (v,) = orthonormal_keys()[:, :1], draws((B, 1, N, H))
    _, state = delta_net(k, k, v, jnp.ones((B, 1, N)), return_state=True)
    out = delta_net(k, k, 0 * v, jnp.full((B, 1, N), 2.0), state=state)
    near(out, -v)


def test_a_zero_key_writes_nothing_and_has_a_gradient():
    q, k, v = qkv(B, T, N, H)
    beta = jnp.ones((B, T, N))
    loss = lambda q, k: delta_net(q, k, v, beta).sum()
    grads = jax.grad(loss, argnums=(0, 1))(q.at[:, 2].set(0.0), k.at[:, 3].set(0.0))
    assert all(np.isfinite(grad).all() for grad in grads)
    assert not np.any(delta_net(q, 0 * k, v, beta))
