"""Test-time training: its oracle, one layer and three, the delta rule, where runs may be split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.linear_recurrent import ttt_memory
from attnjax.ops.linear_recurrent.ttt import Norm
from tests.helpers import draws, exact, near, qkv, run
from tests.ops.plain import heads

B, T, N, H = 2, 9, 4, 6


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * inner


def normed(x, gain, bias):
    centered = x - x.mean()
    return centered / np.sqrt((centered**2).mean() + 1e-6) * gain + bias


def slope_of_norm(x, gain, slope):
    """What a slope at the norm's output is at its input."""
    centered = x - x.mean()
    size = np.sqrt((centered**2).mean() + 1e-6)
    unit, g = centered / size, slope * gain
    return (g - g.mean() - unit * (g * unit).mean()) / size


def ttt_memory_oracle(q, k, v, rate, network, norm, eta):
    """Token by token: all layers of the network are moved, then read."""
    (B, T, N, _), C = q.shape, len(eta)
    k, v, out = heads(k, N), heads(v, N), np.zeros((B, T, N, v.shape[-1]))
    for b, n in np.ndindex(B, N):
        held = [layer[n] for layer in network]
        gain, bias = norm[0][n], norm[1][n]
        for t in range(T):
            if t % C == 0:
                moves = [np.zeros_like(layer) for layer in held]
            inputs, z = [], []
            for i, layer in enumerate(held):
                x = gelu(z[-1]) if i else k[b, t, n]
                inputs.append(np.append(x, 1.0))
                z.append(inputs[-1] @ layer)
            slope = normed(z[-1], gain, bias) - (v[b, t, n] - k[b, t, n])
            slope = slope_of_norm(z[-1], gain, slope)
            for i in reversed(range(len(held))):
                moves[i] = moves[i] + rate[b, t, n] * np.outer(inputs[i], slope)
                if i:
                    slope = held[i][:-1] @ slope * gelu_slope(z[i - 1])
            now = [layer - eta[t % C] * move for layer, move in zip(held, moves, strict=True)]
            x = q[b, t, n]
            for i, layer in enumerate(now):
                x = np.append(gelu(x) if i else x, 1.0) @ layer
            out[b, t, n] = q[b, t, n] + normed(x, gain, bias)
            if t % C == C - 1:
                held = now
    return out


def inputs(*widths, T=T):
    """q, k, v, rates and a network of so many layers."""
    q, k, v = qkv(B, T, N, H, K=2)
    rate = jax.nn.sigmoid(draws((B, T, N), seed=1)[0])
    network = tuple(0.4 * w for w in draws(*((N, a + 1, b) for a, b in widths), seed=2))
    return q, k, v, rate, network, Norm(*draws((N, H), (N, H), seed=3))


@pytest.mark.parametrize("widths", [[(H, H)], [(H, 3), (3, 5), (5, H)]], ids=["one", "three"])
def test_a_network_of_any_depth(widths):
    args = *inputs(*widths), jnp.array([1.0, 0.5, 0.3])
    near(run(ttt_memory, *args), ttt_memory_oracle(*exact(args)), 1e-4)


def test_a_run_goes_on_where_a_mini_batch_ends():
    q, k, v, rate, network, norm = inputs((H, 5), (5, H))
    eta = jnp.array([0.9, 0.5, 0.3])

    def part(s, state):
        tokens = q[:, s], k[:, s], v[:, s], rate[:, s]
        return ttt_memory(*tokens, network, norm, eta, state=state, return_state=True)

    first, state = part(slice(0, 6), None)
    second, state = part(slice(6, None), state)
    near((jnp.concatenate([first, second], axis=1), state), part(slice(None), None))


def test_it_learns_to_give_v_less_k():
    """The same pair again and again, with small steps."""
    q, k, v, rate, network, norm = inputs((H, H), T=40)
    k, v = (jnp.broadcast_to(x[:, :1], x.shape) for x in (k, v))
    norm = Norm(1 + 0 * norm.gain, 0 * norm.bias)
    target = jnp.repeat(v - k, 2, axis=2)
    out = ttt_memory(jnp.repeat(k, 2, axis=2), k, v, rate, network, norm, jnp.full(4, 0.1))
    error = jnp.sum((out - jnp.repeat(k, 2, axis=2) - target) ** 2, axis=(0, 2, 3))
    assert (jnp.diff(error) < 1e-6).all() and error[-1] < 0.9 * error[0]
