"""Label attention: its oracle, and a label that hears no other."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.multihead_structure import label_attention
from attnjax.ops.multihead_structure.label_attention import OPS
from tests.helpers import exact, near, run
from tests.ops.plain import softmax


def label_attention_oracle(x, weights, visible=None):
    w, (B, T, W), (L, R) = weights, x.shape, (len(weights.q), len(weights.scale))
    out = np.zeros((B, T, L * R))
    for b, n in np.ndindex(B, L):
        rows = x[b] if visible is None else x[b][np.asarray(visible[b])]
        a = softmax(rows @ w.k[:, n] @ w.q[n] / np.sqrt(W))
        told = a @ (rows @ w.v[:, n]) @ w.out
        for t in range(T):
            z = (x[b, t] + told) @ w.reduce
            z = (z - z.mean()) / (z.std(ddof=1) + 1e-3)
            out[b, t, n * R : n * R + R] = z * w.scale + w.shift
    return out


def test_a_slice_depends_on_its_label():
    args = OPS[0].sample(seed=1)
    w = args["weights"]
    out = run(label_attention, args["x"], w)
    other = w._replace(q=w.q.at[1].add(1.0), v=w.v.at[:, 1].add(1.0))
    moved = np.abs(run(label_attention, args["x"], other) - out).max((0, 1)) > 1e-4
    np.testing.assert_array_equal(moved, np.arange(20) // 5 == 1)


def test_padding_is_not_read():
    args = OPS[0].sample(seed=1)
    visible = jnp.arange(9) < jnp.array([[9], [4]])
    x = jnp.where(visible[..., None], args["x"], jnp.nan)
    got = run(label_attention, x, args["weights"], visible=visible)
    want = label_attention_oracle(*exact((x, args["weights"])), visible)
    near(got[0], want[0])
    near(got[1, :4], want[1, :4])
