"""CARE attention: its oracle; the memory that one layer hands to the next."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import care_attention
from tests.helpers import near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_care_decoupled import decoupled_attention_oracle
from tests.ops.plain import depthwise


def _gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _interact(x, inter, shape):
    """x (T,width) of one example."""
    centered = x - x.mean(-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    hidden = _gelu_tanh(normed @ inter.expand).reshape(*shape, -1)
    return _gelu_tanh(depthwise(hidden, inter.mix)).reshape(len(x), -1) @ inter.contract


def care_attention_oracle(x, memory, weights, shape):
    u = decoupled_attention_oracle(x, weights.decoupled, shape)
    out = np.zeros(x.shape)
    for b in range(len(x)):
        y = np.concatenate([_interact(u[b], weights.inter_1, shape), memory[b]], -1)
        out[b] = (y + _interact(y, weights.inter_2, shape))[:, : x.shape[-1]]
    return out


def test_care_carries_its_memory_to_the_next_layer():
    args = BY_NAME["care_attention"].sample(seed=3, T=12)
    x, memory, weights = args["x"], args["memory"], args["weights"]
    run = lambda x, memory, weights=weights: care_attention(
        x, memory, weights, shape=(3, 4), return_memory=True
    )
    out, carried = run(x, memory)
    assert out.shape == x.shape and carried.shape == memory.shape
    assert np.abs(carried - memory).max() > 0.1
    other, _ = run(x, 0 * memory)
    assert np.abs(other - out).max() > 1e-3  # the memory is heard

    still = jax.tree.map(jnp.zeros_like, weights.inter_2)
    silent = weights._replace(inter_2=still)  # a second interaction of zeros leaves both alone
    out, carried = run(x, memory, silent)
    near(carried, memory)
    near(out, run(x, 0 * memory, silent)[0])
