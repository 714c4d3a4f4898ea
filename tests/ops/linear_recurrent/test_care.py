"""CARE attention: its oracle; the memory that one layer hands to the next."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.linear_recurrent import care_attention
from tests.helpers import near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_care_decoupled import decoupled_attention_oracle
from tests.ops.plain import depthwise

_gelu = np.vectorize(lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))))


def _interact(x, inter, shape):
    """x (T,width) of one example."""
    gain, shift, (w_1, b_1), mix, mix_bias, (w_2, b_2) = inter
    hidden = _gelu((x * gain + shift) @ w_1 + b_1).reshape(*shape, -1)
    return (depthwise(hidden, mix) + mix_bias).reshape(len(x), -1) @ w_2 + b_2


def care_attention_oracle(x, memory, weights, shape):
    u = decoupled_attention_oracle(x, weights.decoupled, shape)
    out = np.zeros(x.shape)
    for b in range(len(x)):
        y = np.concatenate([memory[b], u[b] + _interact(u[b], weights.inter_1, shape)], -1)
        out[b] = (y + _interact(y, weights.inter_2, shape))[:, memory.shape[-1] :]
    return out


def test_the_first_interaction_is_added_to_the_decoupled_channels():
    args = BY_NAME["care_attention"].sample(T=12)
    weights = jax.tree.map(jnp.zeros_like, args["weights"])
    one = jnp.zeros((3, 3, 4)).at[1, 1].set(1.0)
    weights = weights._replace(decoupled=weights.decoupled._replace(small=one))
    out = care_attention(args["x"], args["memory"], weights, shape=(3, 4))
    near(out[..., 4:8], args["x"][..., 4:8])


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
