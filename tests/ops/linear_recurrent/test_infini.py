"""Infini-attention: its oracle; segments, gate and position code, for either way of writing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core import features
from attnjax.ops.linear_recurrent import infini_attention, infini_delta_attention
from tests.helpers import near, qkv
from tests.ops.plain import infini

B, T, N, K, H, D = 2, 12, 4, 2, 6, 5


def infini_attention_oracle(q, k, v, beta, segment):
    def recalled(query, keys, values):
        if len(keys) == 0:
            return np.zeros(v.shape[-1])
        w = keys @ query
        return w @ values / w.sum()

    return infini(q, k, v, beta, segment, recalled)


both_rules = pytest.mark.parametrize("op", [infini_attention, infini_delta_attention])


@both_rules
def test_segments_by_scan_are_those_of_a_loop_that_carries_a_state(op):
    q, k, v = qkv(B, T, N, H, K=K, D=D)
    beta = jnp.linspace(-1.0, 1.0, N)
    run = lambda at, state: op(
        q[:, at], k[:, at], v[:, at], beta, segment=4, state=state, return_state=True
    )
    whole, last = run(slice(T), None)
    outs, state, sizes = [], None, set()
    for start in range(0, T, 4):
        out, state = run(slice(start, start + 4), state)
        outs.append(out)
        sizes.add(tuple(x.shape for x in jax.tree.leaves(state)))
    near((jnp.concatenate(outs, axis=1), state), (whole, last))
    assert sizes == {((B, N, H, D), (B, N, H))}


@both_rules
def test_an_open_gate_reads_earlier_segments_only(op):
    q, k, v = qkv(B, T, N, H, K=K, D=D)
    run = jax.jit(lambda k, v: op(q, k, v, jnp.full(N, 100.0), segment=4))
    out = run(k, v)
    assert not out[:, :4].any()
    own = slice(4, 8)
    changed = run(k.at[:, own].add(1.0), v.at[:, own].add(1.0))
    assert np.array_equal(changed[:, :8], out[:, :8])
    assert (jnp.abs(changed - out)[:, 8:] > 1e-4).any(-1).all()
    if op is infini_attention:
        phi, keys = features.elu1, jnp.repeat(k, 2, axis=2)[:, :4]
        w = jnp.einsum("BtNH,BsNH->BNts", phi(q[:, own]), phi(keys))
        want = jnp.einsum("BNts,BsND->BtND", w, jnp.repeat(v, 2, axis=2)[:, :4])
        near(out[:, own], want / w.sum(-1).transpose(0, 2, 1)[..., None])


@both_rules
def test_a_position_code_acts_on_the_local_part_alone(op):
    q, k, v = qkv(B, T, N, H, K=K, D=D)
    coded = lambda beta: op(q, k, v, jnp.full(N, beta), segment=4, code=lambda x: 2 * x)
    plain = lambda beta: op(q, k, v, jnp.full(N, beta), segment=4)
    near(coded(100.0), plain(100.0))
    near(coded(-100.0), op(2 * q, 2 * k, v, jnp.full(N, -100.0), segment=4))
    assert not np.allclose(coded(-100.0), plain(-100.0))
