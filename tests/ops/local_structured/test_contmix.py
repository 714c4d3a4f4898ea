"""Context-mixing kernels: the oracle, weights that sum to one, what the far map changes."""

import numpy as np
import pytest

from attnjax.ops.local_structured import contmix
from attnjax.ops.local_structured.contmix import OPS
from tests.helpers import near
from tests.ops.plain import heads, softmax


def contmix_oracle(q, k, v, weight, bias, table, shape):
    (B, T, N, H), X, D = q.shape, weight.shape[-1], v.shape[-1]
    k, v = heads(k, N), heads(v, N)
    cells, out = list(np.ndindex(*shape)), np.zeros((B, T, N, D))
    for b, t, n in np.ndindex(B, T, N):
        affinity = [q[b, t, n] @ k[b, p, n] / np.sqrt(2 * H) for p in range(k.shape[1])]
        kernel = bias + sum(a * w for a, w in zip(affinity, weight, strict=True))
        corner = [min(max(c - X // 2, 0), e - X) for c, e in zip(cells[t], shape, strict=True)]
        window = [(corner[0] + y, corner[1] + z) for y, z in np.ndindex(X, X)]
        scores = [
            kernel[y, z] + table[n, j[0] - cells[t][0] + X - 1, j[1] - cells[t][1] + X - 1]
            for (y, z), j in zip(np.ndindex(X, X), window, strict=True)
        ]
        for w, j in zip(softmax(np.array(scores)), window, strict=True):
            out[b, t, n] += w * v[b, cells.index(j), n]
    return out


def test_a_constant_map_stays_and_far_cells_act_by_the_keys_of_parts_alone():
    (op,) = OPS
    given = op.sample(T=25)
    v = np.broadcast_to(np.asarray(given["v"])[:, :1], given["v"].shape)
    near(contmix(**given | {"v": v}), np.repeat(v, 2, axis=2))
    out = contmix(**given)
    far = np.asarray(given["v"]).copy()
    far[:, 24] += 1
    assert np.array_equal(contmix(**given | {"v": far})[:, :12], out[:, :12])
    assert not np.allclose(contmix(**given | {"k": given["k"] + 1})[:, :12], out[:, :12])


def test_a_table_of_another_kernel_is_refused():
    given = OPS[0].sample(T=25)
    with pytest.raises(ValueError, match=r"cells and \(N, 5, 5\)"):
        contmix(**given | {"table": given["table"][:, 1:, 1:]})
