"""Attention by layout: oracles, and boxes that are alike or none."""

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.ops.multihead_structure import layout_embedding, skimmed_attention
from attnjax.ops.multihead_structure.skim import OPS
from tests.helpers import draws, exact, near, run
from tests.ops.plain import blend, kv, softmax, standard, visible


def layout_embedding_oracle(boxes, tables, eps=1e-12):
    out = np.zeros((*boxes.shape[:2], tables.x.shape[1]))
    for b, t in np.ndindex(boxes.shape[:2]):
        x0, y0, x1, y1 = np.asarray(boxes)[b, t]
        total = tables.x[x0] + tables.x[x1] + tables.y[y0] + tables.y[y1]
        out[b, t] = standard(total + tables.height[y1 - y0] + tables.width[x1 - x0])
    return out * tables.scale + tables.shift


def skimmed(q, k, v, layout_q, layout_k, top_k, allowed):
    (B, T, N, H), S = q.shape, k.shape[1]
    w = np.zeros((B, N, T, S))
    for b, n, i in np.ndindex(B, N, T):
        g, seen = kv(q, k, n), visible(allowed, b, n, i, S)
        seen = sorted(seen, key=lambda j: -layout_q[b, i, n] @ layout_k[b, j, g])[:top_k]
        if seen:
            w[b, n, i, seen] = softmax(k[b, seen, g] @ q[b, i, n] / np.sqrt(H))
    return blend(w, v)


def test_text_sees_what_the_layout_likes_best():
    given = draws((2, 6, 4, 8), (2, 6, 2, 8), (2, 6, 2, 5), (2, 6, 4, 3), (2, 6, 2, 3))
    out = run(skimmed_attention, *given, top_k=3, mask=masks.causal)
    near(out, skimmed(*exact(given), 3, np.tri(6, dtype=bool)))


def test_boxes_beyond_the_tables_are_no_others():
    args = OPS[0].sample(seed=1)
    boxes = jnp.asarray([[[2, 3, 5, 7], [2, 3, 5, 11], [5, 3, 2, 7], [2, 3, 5, 7]]])
    out = layout_embedding(boxes, args["tables"])
    np.testing.assert_array_equal(np.isnan(out[0, :, 0]), [False, True, True, False])
    np.testing.assert_array_equal(out[0, 0], out[0, 3])
