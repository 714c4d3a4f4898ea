"""NiNformer's gate: its oracle; reach, order, the number of tokens."""

import jax
import numpy as np
import pytest

from attnjax.ops.attention_free import ninformer_gate
from tests.helpers import draw
from tests.laws.cases import BY_NAME
from tests.ops.plain import gelu


def ninformer_gate_oracle(x, weights):
    def normed(u, norm):
        u = u - u.mean(-1, keepdims=True)
        return u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-5) * norm.scale + norm.shift

    def mlp(u, up, down):
        return gelu(u @ up.w + up.b) @ down.w + down.b

    w, out = weights, np.zeros_like(x)
    for b in range(len(x)):
        n = normed(x[b], w.norm)
        across = normed(n, w.token_norm)
        columns = [mlp(across[:, c], w.token_up, w.token_down) for c in range(x.shape[2])]
        t = n + np.stack(columns, axis=1)
        gate = t + mlp(normed(t, w.channel_norm), w.up, w.down)
        out[b] = x[b] + (n @ w.gated.w + w.gated.b) * gate
    return out


gate = jax.jit(ninformer_gate)
WEIGHTS = BY_NAME["ninformer_gate"].sample()["weights"]  # of nine tokens


def test_each_token_reaches_all_and_order_counts():
    x = draw(1, 9, 8)
    out, other = gate(x, WEIGHTS), gate(x.at[0, 4].add(draw(8, seed=1)), WEIGHTS)
    assert (np.abs(other - out).max(-1) > 1e-6).all()
    assert np.abs(gate(x[:, ::-1], WEIGHTS) - out[:, ::-1]).max() > 0.01


def test_another_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="ninformer_gate: x has T = 8, expected 9"):
        ninformer_gate(draw(1, 8, 8), WEIGHTS)
