"""What trains Sparsifiner: oracles, the own map, tokens gathered away, phases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attention_weights
from attnjax.core.blocks.order import take_tokens
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import most_looked_at, phase_at, reconstruction_loss, sparsifiner
from attnjax.ops.sparse_select.sparsifiner_training import OPS
from tests.helpers import near, qkv, run, weights_of
from tests.ops.plain import softmax


def reconstruction_loss_oracle(q, k, predictor, teacher, full=1):
    (B, T, N, _), K = q.shape, k.shape[2]
    total = 0.0
    for b, n in np.ndindex(B, N):
        keys = predictor.down.T @ (k[b, :, n * K // N] @ predictor.k.w + predictor.k.b)
        for t in range(full, T):
            query = q[b, t, n] @ predictor.q.w + predictor.q.b
            row = predictor.up @ softmax(keys @ query / np.sqrt(N))
            total += ((row - teacher[b, n, t]) ** 2).sum()
    return total


def most_looked_at_oracle(queries, keys, keep):
    (B, _, N, H), K = queries.shape, keys.shape[2]
    out = []
    for b in range(B):
        rows = [softmax(keys[b, :, n * K // N] @ queries[b, 0, n] / np.sqrt(H)) for n in range(N)]
        order = sorted(range(1, keys.shape[1]), key=lambda j: -np.mean(rows, axis=0)[j])
        out.append([0, *sorted(order[:keep])])
    return np.array(out)


def test_the_own_map_is_a_goal_like_a_teacher_s():
    args = OPS[0].sample(seed=1)
    q, k, p = args["q"], args["k"], args["predictor"]
    own = attention_weights(q, k)
    loss = jax.jit(lambda goal: reconstruction_loss(q, k, p, goal))
    assert loss(own) > 0
    near(loss(own.at[:, :, 0].set(7.0)), loss(own))  # the class token's row is no goal


def test_tokens_that_stay_attend_to_each_other():
    q, k, v = qkv(1, 9, 4, 6, K=2)
    p = OPS[0].sample(seed=1, H=6)["predictor"]
    at = most_looked_at(q, k, keep=5)
    few = [take_tokens(x, at[..., None]) for x in (q, k, v)]
    rows = p._replace(down=p.down[at[0]], up=p.up[at[0]])
    near(run(sparsifiner, *few, rows, keep=1.0), multi_head_attention(*few))
    w = weights_of(functools.partial(run, sparsifiner), *few[:2], rows, keep=0.5)
    assert (w[:, :, 1:] > 0).sum(-1).max() == 3


def test_phases():
    names = [phase_at(epoch) for epoch in range(50)]
    assert names[7:9] == ["reconstruction", "distillation"]
    assert [names.count(x) for x in dict.fromkeys(names)] == [8, 34, 8]
    with pytest.raises(ValueError, match="beyond the last phase"):
        phase_at(50)
    with pytest.raises(ValueError, match="keep: 9; expected 0 to S - 1 = 8"):
        most_looked_at(jnp.zeros((1, 9, 1, 2)), jnp.zeros((1, 9, 1, 2)), keep=9)
