"""Single-head partial attention: its oracle, and what permuting tokens does."""

import numpy as np

from attnjax.ops.multihead_structure import partial_head_attention
from attnjax.ops.multihead_structure.partial_head import OPS
from tests.helpers import near
from tests.ops.plain import softmax


def partial_head_attention_oracle(x, weights):
    w, P, out = weights, len(weights.scale), np.zeros_like(x)
    for b in range(len(x)):
        part = x[b, :, :P]
        y = (part - part.mean()) / np.sqrt(part.var() + 1e-5) * w.scale + w.shift
        q, k, v = (y @ f.w + f.b for f in (w.q, w.k, w.v))
        for t in range(x.shape[1]):
            read = softmax(k @ q[t] / np.sqrt(q.shape[1])) @ v
            both = np.concatenate([read, x[b, t, P:]])
            out[b, t] = np.maximum(both, 0.0) @ w.out.w + w.out.b
    return out


def test_tokens_have_no_order():
    args = OPS[0].sample(seed=1)
    order = np.random.default_rng(0).permutation(9)
    out = partial_head_attention(**args)
    near(partial_head_attention(**args | {"x": args["x"][:, order]}), out[:, order], 1e-4)
