"""The selective token mixer: its oracle, also in both directions."""

import numpy as np

from tests.ops.linear_recurrent.test_selective_ssm import selective_ssm_oracle
from tests.ops.plain import silu


def selective_token_mixer_oracle(x, weights):
    w_x, w_gate, conv, conv_bias, dt, b, c, log_a, skip, w_out = weights
    inner = x @ w_x
    u = np.zeros_like(inner)
    for t in range(x.shape[1]):
        u[:, t] = sum(conv[j] * inner[:, t - j] for j in range(min(t + 1, len(conv))))
    u = silu(u + conv_bias)
    rates = np.log1p(np.exp(u @ dt[0] + dt[1]))
    read = selective_ssm_oracle(u, rates, -np.exp(log_a), u @ b, u @ c)
    return ((read + skip * u) * silu(x @ w_gate)) @ w_out


def both_directions(x, forward, backward):
    reverse = selective_token_mixer_oracle(x[:, ::-1], backward)[:, ::-1]
    return selective_token_mixer_oracle(x, forward) + reverse
