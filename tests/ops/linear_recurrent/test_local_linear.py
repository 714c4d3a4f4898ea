"""ReLU attention with local concentration: its oracle; queries without a positive key."""

import math

import numpy as np

from attnjax.ops.linear_recurrent import local_linear_attention
from tests.helpers import qkv
from tests.laws.cases import BY_NAME
from tests.ops.plain import depthwise, weighted

B, T, N, H = 2, 9, 4, 8


def local_linear_attention_oracle(q, k, v, local, shape):
    (B, T, N, _), D = q.shape, v.shape[3]
    relu = lambda x: np.maximum(x, 0)
    out = weighted(q, k, v, lambda x, y: relu(x) @ relu(y), causal=False)
    gelu = np.vectorize(lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))))
    for b, n in np.ndindex(B, N):
        hidden = gelu(depthwise(out[b, :, n].reshape(*shape, D), local.first[:, :, n]))
        hidden = local.scale[n] * hidden + local.shift[n]
        out[b, :, n] += depthwise(hidden, local.second[:, :, n]).reshape(T, D)
    return out


def test_relu_weights_are_zero_for_a_query_without_a_positive_key():
    q, k, v = qkv(B, T, N, H)
    local = BY_NAME["local_linear_attention"].sample()["local"]
    local = local._replace(second=0 * local.second)
    out = local_linear_attention(q.at[0, 2].set(-1.0), k, v, local, shape=(3, 3))
    assert not np.any(out[0, 2]) and np.all(np.any(out[1], -1))
