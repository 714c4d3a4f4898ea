"""Memory as context: the oracle, segment by segment; what reaches later segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.linear_recurrent import memory_as_context
from attnjax.ops.linear_recurrent.titans_context import OPS
from tests.helpers import near
from tests.ops.plain import sigmoid, softmax, unit


def memory_as_context_oracle(x, layer, weights, segment=64):
    """Token by token, with the gradients of one matrix or of a network of two written out."""
    (B, T, _), (_, N, H) = x.shape, layer.attention.q.shape
    out = np.zeros(x.shape)
    for b in range(B):
        memory = [[w[n].copy() for w in weights] for n in range(N)]
        momentum = [[np.zeros_like(w[n]) for w in weights] for n in range(N)]
        m, a = layer.memory, layer.attention
        for start in range(0, T, segment):
            tokens = x[b, start : start + segment]
            h = [sum(read(memory, m, n, z) for n in range(N)) for z in tokens]
            held = [[w.copy() for w in ws] for ws in memory]
            for i, token in enumerate(tokens):
                seen = np.array([*layer.persistent, *h[: i + 1], *tokens[: i + 1]])
                y = np.zeros(x.shape[-1])
                for n in range(N):
                    w = softmax(seen @ a.k[:, n] @ (token @ a.q[:, n]) / np.sqrt(H))
                    y += w @ (seen @ a.v[:, n]) @ a.out[n]
                gates = sigmoid(np.einsum("w,gwn->gn", y, layer.gates) + layer.gate_bias)
                recalled = np.zeros(x.shape[-1])
                for n in range(N):
                    eta, theta, alpha = gates[:, n]
                    step = gradient(held[n], unit(y @ m.k[:, n]), y @ m.v[:, n])
                    for i_w, g in enumerate(step):
                        momentum[n][i_w] = eta * momentum[n][i_w] - theta * g
                        memory[n][i_w] = (1 - alpha) * memory[n][i_w] + momentum[n][i_w]
                    recalled += read(memory, m, n, y)
                out[b, start + i] = y * recalled
    return out


def read(memory, maps, n, token):
    z = unit(token @ maps.q[:, n]) @ memory[n][0]
    return (z if len(memory[n]) == 1 else z * sigmoid(z) @ memory[n][1]) @ maps.out[n]


def gradient(ws, key, value):
    if len(ws) == 1:
        return [2 * np.outer(key, key @ ws[0] - value)]
    hidden = key @ ws[0]
    gate = sigmoid(hidden)
    error = 2 * (hidden * gate @ ws[1] - value)
    slope = gate * (1 + hidden * (1 - gate))
    return [np.outer(key, ws[1] @ error * slope), np.outer(hidden * gate, error)]


def test_earlier_segments_are_seen_through_the_memory_alone():
    args = OPS[0].sample(seed=1)
    run = jax.jit(lambda x, layer: memory_as_context(x, layer, args["weights"], segment=4))
    x, layer = args["x"], args["layer"]
    changed = x.at[:, :4].multiply(1.5)
    assert jnp.abs(run(changed, layer) - run(x, layer))[:, 4:].max() > 1e-4
    # theta and alpha closed: the memory stays as it was
    held = layer._replace(gate_bias=layer.gate_bias - jnp.asarray([0.0, 100.0, 100.0])[:, None])
    near(run(changed, held)[:, 4:], run(x, held)[:, 4:])


def test_a_segment_of_no_tokens():
    args = OPS[0].sample()
    with pytest.raises(ValueError, match="segment: 0; expected at least 1"):
        memory_as_context(args["x"], args["layer"], args["weights"], segment=0)
