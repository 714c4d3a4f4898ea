"""Experts for modalities: the oracle, and no gradient of visual ones from text."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.multihead_structure import modality_expert_attention
from attnjax.ops.multihead_structure.modality import OPS
from tests.ops.plain import blend, causal, weights


def modality_expert_attention_oracle(x, visual, text, vision):
    (B, T), (N, H), K = x.shape[:2], text.q.shape[1:], text.k.shape[1]
    q, k, v = np.zeros((B, T, N, H)), np.zeros((B, T, K, H)), np.zeros((B, T, K, H))
    for b, t in np.ndindex(B, T):
        for share, kind in ((1 - visual[b, t], text), (visual[b, t], vision)):
            for y, w in ((q, kind.q), (k, kind.k), (v, kind.v)):
                y[b, t] += share * np.tensordot(x[b, t], w, 1)
    o, out = blend(weights(q, k, causal(T, T)), v), np.zeros_like(x)
    for b, t in np.ndindex(B, T):
        for share, kind in ((1 - visual[b, t], text), (visual[b, t], vision)):
            out[b, t] += share * np.einsum("nh,nhw->w", o[b, t], kind.out)
    return out


def test_text_alone_trains_no_visual_expert():
    args = OPS[0].sample(seed=1)
    loss = lambda vision, m: (
        modality_expert_attention(args["x"], m, args["text"], vision) ** 2
    ).sum()
    grad = jax.jit(jax.grad(loss))
    of_text = grad(args["vision"], jnp.zeros((2, 9)))
    assert not any(np.any(x) for x in jax.tree.leaves(of_text))
    assert all(np.any(x) for x in jax.tree.leaves(grad(args["vision"], jnp.ones((2, 9)))))
