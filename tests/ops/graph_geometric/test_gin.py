"""GIN attention: its oracle; the paper's eps and the code's, attention of raw values."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.graph_geometric import gin_attention
from attnjax.ops.softmax_core.multi_head import causal_attention
from tests.helpers import near, run
from tests.laws.cases import BY_NAME
from tests.ops.plain import blend, causal, heads, sigmoid, weights

OP = BY_NAME["gin_attention"]


def through(x, nets):
    first, first_bias, gain, second, second_bias = nets
    h = np.einsum("btnd,ndm->btnm", x, first) + first_bias
    h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * gain
    return np.einsum("btnm,nmd->btnd", h * sigmoid(h), second) + second_bias


def gin_attention_oracle(q, k, v, nets, eps, allowed=None):
    (T, N), S = q.shape[1:3], k.shape[1]
    mixed = blend(weights(q, k, causal(T, S) if allowed is None else allowed), v)
    return through(eps[:, None] * heads(v, N) + mixed, nets)


def test_without_its_own_value_a_token_gives_the_network_its_attention():
    args = OP.sample(seed=2)
    q, k, v, nets = (args[n] for n in ("q", "k", "v", "nets"))
    want = nets(run(causal_attention, q, k, v))
    near(run(gin_attention, q, k, v, nets, 0 * args["eps"]), want)
    more = nets(run(causal_attention, q, k, v) + jnp.repeat(v, 2, axis=2))
    near(run(gin_attention, q, k, v, nets, jnp.ones(4)), more)
