"""Aggregated attention: the oracle, weights that are a softmax, a longer map."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.local_structured import aggregated_attention
from attnjax.ops.local_structured.aggregated import OPS, pooled_bias, sharpness
from attnjax.ops.local_structured.grids import boxes
from tests.helpers import near
from tests.ops.plain import gelu, softmax, unit


def aggregated_attention_oracle(x, weights, shape, pools):
    (B, T, W), w = x.shape, weights
    cells, X, N = list(np.ndindex(*shape)), w.bias.shape[-1], len(w.t)
    parts = []  # of the map: floor and ceil of equal shares, and where they are on average
    for p in np.ndindex(*pools):
        shares = zip(p, shape, pools, strict=True)
        ends = [range(i * n // m, -(-(i + 1) * n // m)) for i, n, m in shares]
        among = lambda c, ends=ends: all(y in run for y, run in zip(c, ends, strict=True))
        inside = [t for t, c in enumerate(cells) if among(c)]
        parts.append((inside, np.mean([cells[t] for t in inside], axis=0)))

    def net(place):
        c = [
            np.sign(y) * math.log2(1 + 8 * abs(y) / max(n - 1, 1)) / 3
            for y, n in zip(place, shape, strict=True)
        ]
        hidden = np.maximum(np.array(c) @ w.net.inner.w + w.net.inner.b, 0)
        return hidden @ w.net.outer.w + w.net.outer.b

    out = np.zeros((B, T, W))
    for b in range(B):
        rows = gelu(x[b] @ w.pooling.inner.w + w.pooling.inner.b)
        pooled = []
        for inside, _ in parts:
            mean = np.mean([rows[t] for t in inside], axis=0)
            mean = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-5)
            pooled.append(mean * w.pooling.gain + w.pooling.shift)
        for t, n in np.ndindex(T, N):
            project = lambda m, y, n=n: y @ m.w[:, n] + m.b[n]
            q = unit(project(w.q, x[b, t]))
            window = {}
            for s, c in enumerate(cells):
                step = c[0] - cells[t][0] + X // 2, c[1] - cells[t][1] + X // 2
                if 0 <= min(step) and max(step) < X:
                    window[s] = step
            count = len(window) + len(pooled)
            scaled = (q + w.e[n]) * np.logaddexp(0, w.t[n]) * math.log(count)
            scores = [
                scaled @ unit(project(w.k, x[b, s])) + w.bias[n][d] for s, d in window.items()
            ]
            for token, (_, place) in zip(pooled, parts, strict=True):
                away = net(np.array(cells[t]) - place)[n]
                scores.append(scaled @ unit(project(w.k, token)) + away)
            a = softmax(np.array(scores))
            values = [project(w.v, x[b, s]) for s in window] + [project(w.v, y) for y in pooled]
            read = sum(p * value for p, value in zip(a, values, strict=True))
            for (y, z), value in zip(window.values(), values[: len(window)], strict=True):
                read = read + (q @ w.u[n, :, y, z] + w.c[n, y, z]) * value
            out[b, t] += read @ w.out[n]
    return out + w.out_bias


def test_constant_values_stay_but_for_the_weights_of_places():
    """Values are their bias, the output map of a head is the identity."""
    (op,) = OPS
    given = op.sample(T=12)
    w = given["weights"]
    eye = jnp.asarray(np.eye(8)[None] * (np.arange(4) == 0)[:, None, None], float)
    v = w.v._replace(w=0 * w.v.w)
    w = w._replace(v=v, out=eye, out_bias=0 * w.out_bias, u=0 * w.u, c=0 * w.c)
    run = jax.jit(lambda w: aggregated_attention(given["x"], w, shape=(3, 4), pools=(1, 2)))
    near(run(w), jnp.broadcast_to(v.b[0], (2, 12, 8)))
    one_more = w._replace(c=w.c.at[:, 1, 1].set(1.0))  # the cell itself counts once more
    near(run(one_more), jnp.broadcast_to(2 * v.b[0], (2, 12, 8)))


def test_the_bias_of_all_keys_is_that_of_the_last_stage():
    w = OPS[0].sample()["weights"]
    bias = np.asarray(pooled_bias(w.net, (2, 3), (2, 3)))
    cells = np.stack(np.unravel_index(np.arange(6), (2, 3)), -1)
    near(bias, np.moveaxis(np.asarray(w.net(cells[:, None] - cells, (2, 3))), -1, 0))


def test_scores_grow_with_the_logarithm_of_the_keys_that_are_there():
    """Windows end with the map: 4, 6 or 9 cells, and 5 pooled tokens."""
    t = jnp.zeros(4)
    got = np.asarray(sharpness(t, boxes((3, 4), 1, halo=1), 5, t.dtype))[0, :, 0, 0]
    counts = [9, 11, 11, 9, 11, 14, 14, 11, 9, 11, 11, 9]
    near(got, np.log(counts) * np.log(2))
