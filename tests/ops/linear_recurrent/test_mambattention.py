"""MambAttention: its oracle; one set of weights for both axes; a block's tokens in the sum."""

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import layer_norm
from attnjax.core.pairwise.attend import attend
from attnjax.ops.linear_recurrent import mambattention
from attnjax.ops.linear_recurrent.mambattention import attend_along
from tests.helpers import near
from tests.laws.cases import BY_NAME
from tests.ops.linear_recurrent.test_selective_mixer import selective_token_mixer_oracle
from tests.ops.plain import blend, weights


def mambattention_oracle(x, shared, time, frequency):
    w_norm, b_norm, w_q, b_q, w_k, w_v, w_out, b_out = shared

    def block(rows, forward, backward, bias):
        centered = rows - rows.mean(-1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * w_norm + b_norm
        q, k, v = (np.einsum("tw,wnh->tnh", normed, w)[None] for w in (w_q, w_k, w_v))
        heads = blend(weights(q + b_q, k, None), v)[0]
        rows = rows + np.einsum("tnh,nhw->tw", heads, w_out) + b_out
        total = rows + bias
        for (scale, mixer, merge), order in ((forward, slice(None)), (backward, np.s_[::-1])):
            normed = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5) * scale
            mixed = selective_token_mixer_oracle(normed[order][None], mixer)[0][order]
            total = total + (rows + mixed) @ merge
        return total

    out = x.copy()
    for b in range(len(x)):
        for f in range(x.shape[2]):
            out[b, :, f] = block(out[b, :, f], *time)
        for t in range(x.shape[1]):
            out[b, t] = block(out[b, t], *frequency)
    return out


def test_a_silent_mixer_leaves_its_tokens_in_the_sum():
    args = BY_NAME["mambattention"].sample()
    x, shared = args["x"], args["shared"]
    shared = shared._replace(out=0 * shared.out, out_bias=0 * shared.out_bias)

    def own(axis):
        silent = axis.forward.mixer._replace(out=0 * axis.forward.mixer.out)
        one = axis.forward._replace(mixer=silent, merge=0.5 * jnp.eye(x.shape[-1]))
        return axis._replace(forward=one, backward=one, bias=0 * axis.bias)

    # each axis adds x / 2 + x / 2
    near(mambattention(x, shared, own(args["time"]), own(args["frequency"])), 4 * x)


def test_weights_of_attention_are_shared_by_the_axes():
    x, shared = (BY_NAME["mambattention"].sample()[name] for name in ("x", "shared"))
    summed = lambda x: sum(attend_along(x, shared, axis) for axis in (1, 2))
    swapped = lambda x: x.swapaxes(1, 2)
    near(summed(swapped(x)), swapped(summed(x)))
    shared = shared._replace(q_bias=0 * shared.q_bias, out_bias=0 * shared.out_bias)
    rows, columns = x.shape[1:3]
    normed = layer_norm(x, 1e-5) * shared.scale + shared.shift
    flat = normed.reshape(len(x), -1, x.shape[-1])
    q, k, v = (jnp.einsum("BTW,WNH->BTNH", flat, w) for w in (shared.q, shared.k, shared.v))
    row, column = np.divmod(np.arange(rows * columns), columns)
    for axis, line in ((1, column), (2, row)):
        heads = attend(q, k, v, mask=masks.array(line[:, None] == line))
        want = jnp.einsum("BTNH,NHW->BTW", heads, shared.out).reshape(x.shape)
        near(attend_along(x, shared, axis), want)
