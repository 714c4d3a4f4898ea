"""MambAttention: its oracle; one set of weights for both axes."""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.pairwise.attend import attend
from attnjax.ops.linear_recurrent.mambattention import attend_along
from tests.helpers import near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_selective_mixer import both_directions
from tests.ops.plain import blend, weights


def mambattention_oracle(x, shared, time, frequency):
    def block(rows, scale, shift, forward, backward):
        centered = rows - rows.mean(-1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * scale + shift
        q, k, v = (np.einsum("tw,wnh->tnh", normed, w)[None] for w in shared[:3])
        heads = blend(weights(q, k, None), v)[0]
        rows = rows + np.einsum("tnh,nhw->tw", heads, shared[3])
        return rows + both_directions(rows[None], forward, backward)[0]

    out = x.copy()
    for b in range(len(x)):
        for f in range(x.shape[2]):
            out[b, :, f] = block(out[b, :, f], *time)
        for t in range(x.shape[1]):
            out[b, t] = block(out[b, t], *frequency)
    return out


def test_weights_of_attention_are_shared_by_the_axes():
    x, shared = (BY_NAME["mambattention"].sample()[name] for name in ("x", "shared"))
    summed = lambda x: sum(attend_along(x, shared, axis) for axis in (1, 2))
    swapped = lambda x: x.swapaxes(1, 2)
    near(summed(swapped(x)), swapped(summed(x)))
    rows, columns = x.shape[1:3]
    flat = x.reshape(len(x), -1, x.shape[-1])
    q, k, v = (jnp.einsum("BTW,WNH->BTNH", flat, w) for w in shared[:3])
    row, column = np.divmod(np.arange(rows * columns), columns)
    for axis, line in ((1, column), (2, row)):
        heads = attend(q, k, v, mask=masks.array(line[:, None] == line))
        want = jnp.einsum("BTNH,NHW->BTW", heads, shared.out).reshape(x.shape)
        near(attend_along(x, shared, axis), want)
