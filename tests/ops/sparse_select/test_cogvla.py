"""CogVLA: its oracles, what a chunk of actions may change, the schedule of its layers."""

import numpy as np
import pytest

from attnjax.ops.sparse_select import kept_shares, routed_layer, vla_coupled_attention
from attnjax.ops.sparse_select.route import mixing
from tests.helpers import draws, near, qkv, run
from tests.ops.plain import blend, weights
from tests.ops.sparse_select.test_route import bent, kept_tokens

B, T, N, K, H = 2, 9, 4, 2, 8


def vla_coupled_attention_oracle(q, k, v, actions):
    T = q.shape[1]
    acts = [t >= T - actions for t in range(T)]
    seen = np.array([[j <= i or (acts[i] and acts[j]) for j in range(T)] for i in range(T)])
    return blend(weights(q, k, seen), v)


def routed_layer_oracle(x, score, attention, mlp, k, frames=None):
    out, frames = x.copy(), frames or (0,) * x.shape[1]
    for b, at in enumerate(kept_tokens(score, k, frames)):
        if at:
            h = x[b, at] + bent(x[b, at], np.array(at))
            out[b, at] = h + score[b, at][:, None] * bent(h, np.array(at))
    return out


def test_actions_change_no_token_before_and_are_a_set():
    q, k, v = qkv(B, T, N, H, K=K)
    out = run(vla_coupled_attention, q, k, v, actions=4)
    swap = np.array([*range(5), 7, 5, 8, 6])
    near(run(vla_coupled_attention, *(x[:, swap] for x in (q, k, v)), actions=4), out[:, swap])
    other = [x.at[:, 5:].multiply(-2.0) for x in (q, k, v)]
    np.testing.assert_array_equal(run(vla_coupled_attention, *other, actions=4)[:, :5], out[:, :5])


def test_a_token_that_is_dropped_keeps_its_bits():
    x, score = draws((B, T, H), (B, T))
    frames = (-1, *[0] * (T - 3), -1, -1)
    out = run(routed_layer, x, score, attention=mixing, mlp=mixing, k=2, frames=frames)
    same = (np.asarray(out) == np.asarray(x)).all(-1)
    assert same.sum(1).tolist() == [T - 5] * B


def test_layers_keep_less_and_less():
    shares = kept_shares(32)
    assert shares[:8] == [1.0] * 8 and shares[8] == pytest.approx(0.84448, abs=1e-5)
    assert min(shares) == 0.15 == shares[-1] and sorted(shares, reverse=True) == shares
    with pytest.raises(ValueError, match="depth: 1; expected at least 2"):
        kept_shares(1)
    with pytest.raises(ValueError, match="actions: 10; expected 0 to T = 9"):
        vla_coupled_attention(*qkv(B, T, N, H), actions=10)
