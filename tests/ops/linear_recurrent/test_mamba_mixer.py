"""MambaMixer: its oracle."""

from tests.ops.linear_recurrent.test_selective_mixer import (
    both_directions,
    selective_token_mixer_oracle,
)


def mamba_mixer_oracle(x, layers, averages):
    tokens, channels = [x], [x]
    for l, (token, forward, backward) in enumerate(layers):
        alpha, beta, theta, gamma = (row[l] for row in averages)
        mixed = sum(alpha[i] * tokens[i] + beta[i] * channels[i] for i in range(l + 1))
        tokens.append(selective_token_mixer_oracle(mixed, token))
        mixed = sum(theta[i] * tokens[i] for i in range(l + 2))
        mixed = mixed + sum(gamma[i] * channels[i] for i in range(l + 1))
        channels.append(
            both_directions(mixed.transpose(0, 2, 1), forward, backward).transpose(0, 2, 1)
        )
    return channels[-1]
