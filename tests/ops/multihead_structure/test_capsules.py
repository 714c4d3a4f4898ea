"""Capsule attention: its oracle; capsules are a set; one alone is linear but for its gate."""

import numpy as np

from attnjax.ops.multihead_structure import capsule_attention
from tests.helpers import draws, near, qkv, run
from tests.ops.plain import blend, sigmoid, weights

B, T, N, K, H = 2, 7, 4, 2, 5


def capsule_attention_oracle(q, k, v, w, b, allowed=None):
    out = blend(weights(q, k, allowed), v)
    for i, t in np.ndindex(*out.shape[:2]):
        score = sum(w[n] @ out[i, t, n] for n in range(q.shape[2]))
        out[i, t] *= sigmoid(score + b)
    return out


def test_capsules_are_a_set_and_one_alone_keeps_its_pose():
    (q, k, v), (w,) = qkv(B, T, N, H, K=K), draws((N, H), seed=5)
    b = w[0, :1]
    out, order = run(capsule_attention, q, k, v, w, b), np.random.default_rng(0).permutation(T)
    near(run(capsule_attention, *(x[:, order] for x in (q, k, v)), w, b), out[:, order])
    one = run(capsule_attention, *(x[:, :1] for x in (q, k, v)), w, b)
    pose = np.asarray(v[:, :1]).repeat(N // K, 2)
    near(one, sigmoid((pose * np.asarray(w)).sum((2, 3)) + float(b[0]))[..., None, None] * pose)
