"""Cascaded group attention: its oracle, the cascade, windows, and offsets as positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.multihead_structure import cascaded_group_attention
from attnjax.ops.multihead_structure.cascaded_group import OPS
from tests.helpers import near
from tests.ops.plain import depthwise, softmax


def cascaded_group_attention_oracle(x, weights, shape):
    """Window by window, of a map that zeros fill up to whole windows."""
    w, (rows, columns), Z = weights, shape, weights.table.shape[1]
    N, P, R = w.q.shape
    h, c = (Z, Z) if max(shape) > Z else shape
    full = np.zeros((len(x), -(-rows // h) * h, -(-columns // c) * c, x.shape[2]))
    full[:, :rows, :columns] = x.reshape(len(x), rows, columns, -1)
    out = np.zeros_like(full)
    for b, top, left in np.ndindex(len(x), full.shape[1] // h, full.shape[2] // c):
        cut = (b, slice(top * h, top * h + h), slice(left * c, left * c + c))
        image, read = full[cut], []
        for n in range(N):
            f = image[..., n * P : (n + 1) * P] + (read[-1] if read else 0.0)
            q, k, v = (
                f @ m[n] + bias[n]
                for m, bias in ((w.q, w.q_bias), (w.k, w.k_bias), (w.v, w.v_bias))
            )
            q = depthwise(q, w.kernel[n]) + w.kernel_bias[n]
            o = np.zeros((h, c, P))
            for i, j in np.ndindex(h, c):
                scores = [
                    q[i, j] @ k[y, z] / np.sqrt(R) + w.table[n, abs(i - y), abs(j - z)]
                    for y, z in np.ndindex(h, c)
                ]
                o[i, j] = softmax(np.array(scores)) @ v.reshape(-1, P)
            read.append(o)
        out[cut] = np.maximum(np.concatenate(read, -1), 0.0) @ w.out.w + w.out.b
    return out[:, :rows, :columns].reshape(x.shape)


def test_a_head_hears_those_before_it_and_a_window_no_other():
    args = OPS[0].sample(seed=1, T=16)
    w = args["weights"]
    args["weights"] = w._replace(out=w.out._replace(w=jnp.eye(8), b=jnp.full(8, 9.0)))
    out = cascaded_group_attention(**args).reshape(2, 4, 4, 8)
    second = args["x"].reshape(2, 4, 4, 8).at[:, 3, 3, 4:].add(1.0).reshape(2, 16, 8)
    moved = cascaded_group_attention(**args | {"x": second}).reshape(2, 4, 4, 8)
    near(moved[..., :4], out[..., :4])  # the channels of the first head
    near(moved[:, :2], out[:, :2])  # windows of two by two cells
    near(moved[:, :, :2], out[:, :, :2])
    assert abs(moved - out)[:, 2:, 2:, 4:].max() > 1e-3
    first = args["x"].reshape(2, 4, 4, 8).at[:, 3, 3, :4].add(1.0).reshape(2, 16, 8)
    moved = cascaded_group_attention(**args | {"x": first}).reshape(2, 4, 4, 8)
    assert abs(moved - out)[:, 2:, 2:, 4:].max() > 1e-3


def test_a_map_that_is_not_the_tokens():
    args = OPS[0].sample(seed=1)
    with pytest.raises(ValueError, match=r"shape: \(2, 4\), with N, P = 2, 4; expected"):
        cascaded_group_attention(**args | {"shape": (2, 4)})
