"""The gated CNN block: its oracle; what a cell reaches, channels that are not convolved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.numerics import Affine
from attnjax.ops.attention_free import gated_cnn_block
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import depthwise, gelu


def gated_cnn_block_oracle(x, weights):
    w, out = weights, np.zeros_like(x)
    C = w.kernel.shape[-1]
    for b in range(len(x)):
        u = x[b] - x[b].mean(-1, keepdims=True)
        u = u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-6) * w.norm.scale + w.norm.shift
        value = u @ w.value.w + w.value.b
        convolved = depthwise(value[..., -C:], w.kernel) + w.kernel_bias
        inner = np.concatenate([value[..., :-C], convolved], axis=-1)
        out[b] = x[b] + (gelu(u @ w.gate.w + w.gate.b) * inner) @ w.out.w + w.out.b
    return out


block = jax.jit(gated_cnn_block)
WEIGHTS = BY_NAME["gated_cnn_block"].sample()["weights"]


def test_a_cell_reaches_the_taps_of_the_kernel_and_the_inside_moves_with_the_image():
    x = draw(1, 7, 8, 8)
    out, other = block(x, WEIGHTS), block(x.at[0, 3, 4].add(draw(8, seed=1)), WEIGHTS)
    rows, columns = np.nonzero(np.abs(other - out).max(-1)[0])
    window = {(3 + i, 4 + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert set(zip(rows, columns, strict=True)) == window
    moved = block(jnp.roll(x, (1, 2), (1, 2)), WEIGHTS)
    near(moved[:, 2:-1, 3:-1], out[:, 1:-2, 1:-3])


def test_the_first_channels_inside_are_not_convolved():
    E, C = WEIGHTS.value.w.shape[-1], WEIGHTS.kernel.shape[-1]
    first = (jnp.arange(E) < E - C)[:, None]
    weights = WEIGHTS._replace(out=WEIGHTS.out._replace(w=WEIGHTS.out.w * first))
    x = draw(1, 7, 8, 8)
    other = x.at[0, 3, 4].add(draw(8, seed=1))
    rows, columns = np.nonzero(np.abs(block(other, weights) - block(x, weights)).max(-1)[0])
    assert (list(rows), list(columns)) == ([3], [4])


def test_more_channels_convolved_than_are_there():
    few = Affine(WEIGHTS.value.w[:, :3], WEIGHTS.value.b[:3])
    with pytest.raises(ValueError, match="kernel has C = 4 channels, expected at most E = 3"):
        gated_cnn_block(draw(1, 3, 3, 8), WEIGHTS._replace(value=few))
