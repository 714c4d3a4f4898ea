"""BiFormer: its oracle, regions as windows, maps that regions do not divide."""

import functools

import numpy as np
import pytest

from attnjax import masks
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import bi_level_routing_attention
from tests.helpers import draw, exact, near, qkv, run
from tests.ops.plain import blend, blocks_of_cells, weights

B, T, N, K, H = 2, 12, 4, 2, 8


def bi_level_routing_attention_oracle(q, k, v, kernel, shape, regions, top_k, bias=0.0):
    (B, T, N, _), K = q.shape, k.shape[2]
    cells_of = blocks_of_cells(shape, [int(np.ceil(n / regions)) for n in shape])
    seen = np.zeros((B, N, T, T), bool)
    for b in range(B):
        mean = lambda x, cells, n, b=b: sum(x[b, j, n] for j in cells) / len(cells)
        for cells in cells_of.values():
            likes = {
                region: sum(mean(q, cells, n) @ mean(k, other, n * K // N) for n in range(N))
                for region, other in cells_of.items()
            }
            for region in sorted(likes, key=likes.get, reverse=True)[:top_k]:
                for i in cells:
                    seen[b, :, i, cells_of[region]] = True
    out = blend(weights(q / np.sqrt(N), k, seen), v)
    if kernel is not None:
        out += bias
        places = list(np.ndindex(*shape))
        for b, i, n, j in np.ndindex(B, T, N, T):
            dy, dx = (y - x + 2 for x, y in zip(places[i], places[j], strict=True))
            if 0 <= dy < 5 and 0 <= dx < 5:
                out[b, i, n] += kernel[dy, dx, n] * v[b, j, n * K // N]
    return out


def test_a_region_that_likes_itself_best_is_a_window():
    rows, columns = np.divmod(np.arange(24), 6)
    region = rows // 2 * 2 + columns // 3
    codes = 4 * np.eye(4, 8, dtype=np.float32)[region][None, :, None]
    q, k, v = qkv(B, 24, N, H, K=K)
    q, k = q + codes, k + codes
    got = run(bi_level_routing_attention, q, k, v, shape=(4, 6), regions=2, top_k=1)
    near(got, run(multi_head_attention, q / 2, k, v, mask=masks.document(region)))  # sqrt(N)


def test_the_scale_is_of_all_channels():
    """N = 2, H = 2, one region of 4 tokens, q.k = 2 for one key: e / (e + 3); printed 0.5783."""
    q = np.zeros((1, 4, 2, 2), np.float32)
    q[..., 0] = 2.0
    k, v = np.zeros_like(q), np.zeros((1, 4, 2, 1), np.float32)
    k[:, 0, :, 0], v[:, 0] = 1.0, 1.0
    op = functools.partial(bi_level_routing_attention, q, k, v, shape=(2, 2), regions=1, top_k=1)
    near(op(), np.full((1, 4, 2, 1), 0.4754), 1e-4)
    near(op(scale=2**-0.5), np.full((1, 4, 2, 1), 0.5783), 1e-4)


def test_the_convolution_has_a_bias():
    q, k, v = qkv(B, T, N, H, K=K)
    kernel, bias = draw(5, 5, N, H, scale=0.2), draw(N, H, seed=5)
    sizes = {"shape": (3, 4), "regions": 2, "top_k": 2}
    got = run(bi_level_routing_attention, q, k, v, kernel, bias=bias, **sizes)
    arrays = exact((q, k, v, kernel))
    near(got, bi_level_routing_attention_oracle(*arrays, **sizes, bias=exact(bias)))


def test_biformer_of_a_map_that_regions_do_not_divide():
    q, k, v = qkv(B, 15, N, H, K=K)
    kernel = draw(5, 5, 4, 8, seed=5)
    given = {"shape": (3, 5), "regions": 2, "top_k": 2}
    got = run(bi_level_routing_attention, q, k, v, kernel, **given)
    near(got, bi_level_routing_attention_oracle(*exact((q, k, v, kernel)), **given))
    plain = run(bi_level_routing_attention, q, k, v, **given)
    assert not np.allclose(plain, run(multi_head_attention, q, k, v), atol=0.01)
    with pytest.raises(ValueError, match=r"shape: \(4, 4\); expected T = 15 and S = 15 cells"):
        bi_level_routing_attention(q, k, v, shape=(4, 4))
