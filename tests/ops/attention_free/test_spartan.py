"""SpaRTAN's mixers: oracles; holes, groups, numbers of 1, images that move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.attention_free import spartan_channel_mixer, spartan_spatial_mixer
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import gelu, sigmoid


def _conv(x, kernel, step=1):
    """x (rows,columns,C), kernel (k,k,I,E), one number at a time."""
    (rows, columns, C), (k, _, inner, E) = x.shape, kernel.shape
    out = np.zeros((rows, columns, E))
    for r, c, e in np.ndindex(rows, columns, E):
        group = e // (E // (C // inner))
        own = x[:, :, group * inner : (group + 1) * inner]
        for i, j in np.ndindex(k, k):
            at = r + step * (i - k // 2), c + step * (j - k // 2)
            if 0 <= at[0] < rows and 0 <= at[1] < columns:
                out[r, c, e] += own[at] @ kernel[i, j, :, e]
    return out


def _apply(x, affine):
    return x @ affine.w + affine.b


def _act(x, norm):
    return gelu(x * norm.scale + norm.shift)


def _excited(x, gate):
    mean = x.mean((0, 1))
    inside = np.maximum(mean @ gate.squeeze + gate.squeeze_bias, 0)
    return x * sigmoid(inside @ gate.expand + gate.expand_bias)


def spartan_spatial_mixer_oracle(x, weights):
    w, out = weights, []
    for image in x:
        u = _apply(image, w.into)
        u = u + w.gamma * (u - u.mean((0, 1)))
        close = _excited(_act(_conv(u, w.near), w.near_norm), w.near_gate)
        far = _act(_conv(_conv(u, w.far_1, 2), w.far_2, 2), w.far_norm)
        both = np.concatenate([close, _excited(far, w.far_gate)], axis=-1)
        out.append(_apply(both, w.out))
    return np.array(out)


def spartan_channel_mixer_oracle(x, weights):
    w, out = weights, []
    for image in x:
        f, angle = _apply(image, w.weight), gelu(_apply(image, w.angle))
        for r, c in np.ndindex(image.shape[:2]):
            m = image[r, c].argmax()
            one = f[r, c] * angle[r, c] + f[r, c, m] * angle[r, c, m]
            z = (one[0::2] + 1j * one[1::2]) * (w.turn[:, 0] + 1j * w.turn[:, 1])
            f[r, c, 0::2], f[r, c, 1::2] = z.real, z.imag
        out.append(_apply(_excited(_act(_conv(f, w.kernel), w.norm), w.gate), w.out))
    return np.array(out)


def _weights(name):
    return BY_NAME[name].sample()["weights"]


@pytest.mark.parametrize("op", [spartan_spatial_mixer, spartan_channel_mixer])
def test_the_inside_moves_with_the_image(op):
    """What stands far from the border leaves the means as they are."""
    mix, x = jax.jit(op), jnp.zeros((1, 21, 22, 8)).at[:, 9:12, 9:12].set(draw(1, 3, 3, 8))
    still, moved = (mix(y, _weights(op.__name__)) for y in (x, jnp.roll(x, (1, 2), (1, 2))))
    near(moved[:, 6:-5, 7:-5], still[:, 5:-6, 5:-7])


def test_numbers_of_one_leave_pairs_as_they_are():
    weights, x = _weights("spartan_channel_mixer"), draw(1, 5, 4, 8)
    ones = weights.turn.at[:].set(jnp.asarray([1.0, 0.0]))
    mix = jax.jit(spartan_channel_mixer)
    turned = weights._replace(turn=-ones, kernel=-weights.kernel)
    near(mix(x, turned), mix(x, weights._replace(turn=ones)))
    assert np.abs(mix(x, weights) - mix(x, weights._replace(turn=ones))).max() > 1e-3
