"""The pooling mixer and the MetaFormer block: their oracles; borders, windows, other mixers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.attention_free import metaformer_block, pool_mixer
from tests.helpers import draw, near, run
from tests.laws.cases import BY_NAME
from tests.ops.plain import gelu


def pool_mixer_oracle(x, size=3):
    out, shape = np.zeros_like(x), x.shape[1:-1]
    for b, place in itertools.product(range(len(x)), np.ndindex(shape)):
        near_by = [range(max(i - size // 2, 0), i + size // 2 + 1) for i in place]
        cells = [at for at in itertools.product(*near_by) if all(np.less(at, shape))]
        out[(b, *place)] = sum(x[(b, *at)] for at in cells) / len(cells) - x[(b, *place)]
    return out


def metaformer_block_oracle(x, weights, mixer):
    assert mixer is pool_mixer

    def normed(u, norm):
        each = tuple(range(1, u.ndim))
        u = u - u.mean(each, keepdims=True)
        return u / np.sqrt((u**2).mean(each, keepdims=True) + 1e-5) * norm.scale + norm.shift

    w = weights
    u = x + w.mixer_scale * pool_mixer_oracle(normed(x, w.mixer_norm))
    hidden = gelu(normed(u, w.mlp_norm) @ w.up.w + w.up.b)
    return u + w.mlp_scale * (hidden @ w.down.w + w.down.b)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_a_constant_grid_of_any_rank_pools_to_zero_up_to_its_border(shape):
    x = jnp.broadcast_to(draw(2, *(1 for _ in shape), 3), (2, *shape, 3))
    near(run(pool_mixer, x), np.zeros(x.shape))


def test_a_cell_reaches_its_window_and_the_inside_moves_with_the_image():
    x = draw(1, 7, 8, 2)
    pool = jax.jit(pool_mixer, static_argnames="size")
    out, other = pool(x), pool(x.at[0, 3, 4].add(1.0))
    rows, columns = np.nonzero(np.abs(other - out).max(-1)[0])
    assert set(zip(rows, columns, strict=True)) == set(np.ndindex(7, 8)) & {
        (3 + i, 4 + j) for i in (-1, 0, 1) for j in (-1, 0, 1)
    }
    moved = pool(jnp.roll(x, (1, 2), (1, 2)))
    near(moved[:, 2:-1, 3:-1], out[:, 1:-2, 1:-3])


@pytest.mark.parametrize("size", [0, 2, -1])
def test_a_size_that_is_not_odd_is_refused(size):
    with pytest.raises(ValueError, match=f"pool_mixer: size is {size}, expected an odd"):
        pool_mixer(draw(1, 3, 3, 1), size=size)


def test_with_an_identity_for_a_mixer_cells_meet_in_the_norms_alone():
    args = BY_NAME["metaformer_block"].sample()
    x, weights = args["x"], args["weights"]
    order = np.random.default_rng(0).permutation(x.shape[1])
    block = jax.jit(metaformer_block, static_argnames="mixer")
    identity = lambda x: x
    near(block(x[:, order], weights, mixer=identity), block(x, weights, mixer=identity)[:, order])
    pooled = lambda x: block(x, weights, mixer=pool_mixer)
    assert np.abs(pooled(x[:, order]) - pooled(x)[:, order]).max() > 0.01
