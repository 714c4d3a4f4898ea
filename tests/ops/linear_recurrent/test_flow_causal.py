"""Causal flow attention: its oracle; its first token."""

import math

import jax
import numpy as np

from attnjax.ops.linear_recurrent import flow_attention_causal
from tests.helpers import near, qkv
from tests.ops import plain

B, T, N, H = 2, 9, 4, 8


def flow_attention_causal_oracle(q, k, v):
    (B, T, N, _), (K, D) = q.shape, v.shape[2:]
    out = np.zeros((B, T, N, D))
    for b, n in np.ndindex(B, N):
        m = n * K // N
        c = plain.sigmoid(q[b, :, n]) @ plain.sigmoid(k[b, :, m]).T
        incoming = [sum(c[i, j] for j in range(i + 1)) / (i + 1) for i in range(T)]
        outgoing = [sum(c[i, j] for i in range(j + 1)) / (j + 1) for j in range(T)]
        sink = [sum(c[i, j] / outgoing[j] for j in range(i + 1)) / (i + 1) for i in range(T)]
        source = [sum(c[i, j] / incoming[i] for i in range(j + 1)) / (j + 1) for j in range(T)]
        e = [math.exp(min(s, 1)) for s in source]
        u = [e[j] / (sum(e[: j + 1]) / (j + 1)) * v[b, j, m] for j in range(T)]
        for i in range(T):
            taken = sum(c[i, j] / (incoming[i] * (i + 1)) * u[j] for j in range(i + 1))
            out[b, i, n] = plain.sigmoid(sink[i]) * taken
    return out


def test_the_first_token_of_causal_flow_keeps_its_value():
    q, k, v = qkv(B, T, N, H)
    near(flow_attention_causal(q, k, v)[:, 0], jax.nn.sigmoid(1.0) * v[:, 0])
