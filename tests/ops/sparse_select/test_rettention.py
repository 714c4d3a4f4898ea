"""Re-ttention: its oracle, exact where nothing changed, what growing adds, nothing left out."""

import functools

import jax.numpy as jnp
import numpy as np

from attnjax import masks
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import measure_rest, rettention
from tests.helpers import draw, near, qkv, run
from tests.ops.plain import blend, weights

B, T, N, K, H = 2, 12, 4, 2, 8
KEPT = masks.window(1, 1) | masks.sinks(2)


def rettention_oracle(q, k, v, ratio, rest):
    return ratio[..., None] * blend(weights(q, k, None), v) + rest


def test_of_the_same_inputs_it_is_attention_to_all_keys():
    q, k, v = qkv(B, T, N, H, K=K, scale=2.0)
    out, ratio, rest = run(measure_rest, q, k, v, kept=KEPT)
    true = run(multi_head_attention, q, k, v)
    near(out, true)
    again = functools.partial(run, rettention, q, k, v, kept=KEPT)
    near(again(ratio, rest), true)
    grown = again(ratio + 0.12, rest)
    near(grown - true, 0.12 * run(multi_head_attention, q, k, v, mask=KEPT))


def test_ratio_is_the_share_of_the_kept_and_rest_what_others_gave():
    q, k, v = qkv(B, T, N, H, K=K)
    _, ratio, rest = run(measure_rest, q, k, v, kept=KEPT)
    w, kept = weights(np.asarray(q), np.asarray(k), None), KEPT.dense(T, T)
    near(ratio, np.where(kept, w, 0).sum(-1).transpose(0, 2, 1))
    near(rest, blend(np.where(kept, 0, w), np.asarray(v)))


def test_all_kept_leaves_nothing():
    q, k, v = qkv(B, T, N, H, K=K)
    _, ratio, rest = run(measure_rest, q, k, v, kept=masks.everything)
    near((ratio, rest), (np.ones((B, T, N)), np.zeros((B, T, N, H))))


def test_it_is_nearer_than_few_keys_alone_where_inputs_change_slowly():
    q, k, v = qkv(B, T, N, H, K=K)
    _, ratio, rest = run(measure_rest, q, k, v, kept=KEPT)
    moved = [x + 0.05 * draw(*x.shape, seed=7 + i) for i, x in enumerate((q, k, v))]
    true = run(multi_head_attention, *moved)
    off = lambda out: float(jnp.abs(out - true).mean())
    alone = run(multi_head_attention, *moved, mask=KEPT)
    assert off(run(rettention, *moved, ratio, rest, kept=KEPT)) < off(alone) / 4
