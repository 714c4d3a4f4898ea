"""The bifurcate gate with oversized kernels: its oracle; reach, places, stretched kernels."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.attention_free import oversized_gate, stretched
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import depthwise, gelu


def _toeplitz(kernel, size):
    """(size,size,E): what each place gets of each other one along an axis."""
    out, middle = np.zeros((size, size, kernel.shape[-1])), len(kernel) // 2
    for i, j in np.ndindex(size, size):
        if 0 <= j - i + middle < len(kernel):
            out[i, j] = kernel[j - i + middle]
    return out


def oversized_gate_oracle(x, weights):
    w, out = weights, np.zeros_like(x)
    rows, columns = _toeplitz(w.rows, x.shape[1]), _toeplitz(w.columns, x.shape[2])
    for b in range(len(x)):
        gate = gelu(x[b] @ w.gate.w + w.gate.b)
        far = np.einsum("riE,cjE,ijE->rcE", rows, columns, gate)
        both = far + depthwise(gate, w.local)
        out[b] = ((x[b] @ w.value.w + w.value.b) * both) @ w.out
    return out


gate = jax.jit(oversized_gate)
WEIGHTS = BY_NAME["oversized_gate"].sample()["weights"]


def test_a_corner_reaches_every_cell():
    x = draw(1, 9, 3, 8)
    assert (np.abs(gate(x.at[0, 0, 0].add(1.0), WEIGHTS) - gate(x, WEIGHTS)).max(-1) > 1e-6).all()


def test_an_image_of_one_color_tells_its_places_apart():
    x = jnp.broadcast_to(draw(1, 1, 1, 8), (1, 9, 3, 8))
    cells = np.asarray(gate(x, WEIGHTS)).reshape(27, 8)
    assert np.abs(cells[:, None] - cells[None]).max(-1)[~np.eye(27, dtype=bool)].min() > 1e-4


def test_long_kernels_equal_products_of_spectra():
    """Along the rows alone: the other axis has one tap."""
    zero, one = jnp.zeros((3, 3, 6)), jnp.ones((1, 6))
    weights = WEIGHTS._replace(columns=one, local=zero)
    x = np.asarray(draw(1, 9, 3, 8))
    inner = gelu(x @ np.asarray(weights.gate.w) + np.asarray(weights.gate.b))
    spectrum = np.fft.rfft(inner, 32, axis=1)
    spectrum *= np.fft.rfft(np.asarray(weights.rows)[::-1], 32, axis=0)[None, :, None]
    far = np.fft.irfft(spectrum, 32, axis=1)[:, 8:17]
    want = ((x @ weights.value.w + weights.value.b) * far) @ weights.out
    near(gate(x, weights), want)


def test_stretched_kernels():
    kernel = jnp.asarray([[0.0], [2.0], [6.0]])
    near(stretched(kernel, 5), [[0.0], [1.0], [2.0], [4.0], [6.0]])
    near(stretched(kernel, 3), kernel)
    near(stretched(kernel, 2), [[0.0], [6.0]])
