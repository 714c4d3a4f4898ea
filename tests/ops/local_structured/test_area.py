"""Area attention: the oracle, strips that do not meet, its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.local_structured import area_attention
from tests.helpers import qkv, weights_of
from tests.ops.plain import blend, cut_tail, depthwise, heads, weights


def area_attention_oracle(q, k, v, shape, areas, kernel=None, bias=None):
    B, T, N, _ = q.shape
    home = {t: strip for strip in cut_tail(T, -(-T // areas)) for t in strip}
    together = np.array([[j in home[i] for j in range(T)] for i in range(T)])
    out = blend(weights(q, k, together), v)
    if kernel is not None:
        v = heads(v, N)
        for b, n in np.ndindex(B, N):
            image = v[b, :, n].reshape(*shape, v.shape[-1])
            out[b, :, n] += depthwise(image, kernel[:, :, n]).reshape(T, v.shape[-1])
    return out if bias is None else out + bias


def test_strips_are_runs_of_the_flattened_map():
    q, k, _ = qkv(1, 12, 2, 8)
    seen = weights_of(area_attention, q, k, shape=(4, 3), areas=3)[0] > 0
    strips = np.arange(12) // 4
    assert (seen == (strips[:, None] == strips)).all()


def operations(T, **given):
    fn = lambda q: area_attention(q, q, q, shape=(T // 8, 8), **given)
    shape = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32)
    return jax.jit(fn).lower(shape).cost_analysis()["flops"]


def test_four_areas_cost_a_quarter():
    assert operations(256, areas=4) < 0.27 * operations(256, areas=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (5, 3)}, r"shape: \(5, 3\); expected T = 12 cells"),
        ({"areas": 0}, r"areas: 0; expected at least 1"),
    ],
)
def test_maps_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        area_attention(*qkv(1, 12, 2, 8), **({"shape": (4, 3)} | given))
