"""Specialized heads: its oracles, a pruned layer, usage."""

import jax.numpy as jnp
import numpy as np

from attnjax.ops.multihead_structure import (
    head_usage,
    likeliest_gates,
    most_used,
    specialized_heads,
)
from attnjax.ops.multihead_structure.specialized import Expander
from tests.helpers import draws, near, qkv, run
from tests.ops.plain import blend, gelu, softmax, weights

B, T, N, H, W, E = 2, 7, 4, 3, 5, 6


def specialized_heads_oracle(q, k, v, gates, out, expander, allowed=None):
    read, (up, down) = blend(weights(q, k, allowed), v), expander
    total = np.zeros((*q.shape[:2], out.shape[-1]))
    for b, t, n in np.ndindex(*read.shape[:3]):
        said = read[b, t, n] @ out[n]
        total[b, t] += gates[b, t, n] * (said + gelu(said @ up) @ down)
    return total


def likeliest_gates_oracle(logits):
    gates = np.zeros(logits.shape)
    for at in np.ndindex(*logits.shape[:2]):
        p = softmax(logits[at])
        gates[(*at, p.argmax())] = p.max()
    return gates


def head_usage_oracle(logits):
    best = logits.argmax(-1).ravel()
    return np.bincount(best, minlength=logits.shape[-1]) / best.size


def test_a_pruned_layer_is_the_routed_one_where_its_head_is_chosen():
    q, k, v = qkv(B, T, N, H)
    logits, out, up, down = draws((B, T, N), (N, H, W), (W, E), (E, W))
    logits = logits.at[:, 3:, 2].set(50.0)  # all of head 2 from here on
    gates = run(likeliest_gates, logits)
    routed = run(specialized_heads, q, k, v, gates, out, Expander(up, down))
    stays = most_used(run(head_usage, logits), 1)
    assert stays.tolist() == [2]
    few = [x[:, :, stays] for x in (q, k, v)]
    pruned = specialized_heads(*few, jnp.ones((B, T, 1)), out[stays], Expander(up, down))
    near(pruned[:, 3:], routed[:, 3:])
    assert np.abs(pruned - routed)[:, :3].max() > 0.01


def test_usage_sums_to_one_and_the_most_used_stay_in_order():
    usage = run(head_usage, draws((B, T, N), seed=3)[0])
    near(usage.sum(), 1.0)
    assert most_used(jnp.asarray([0.2, 0.1, 0.3, 0.4]), 3).tolist() == [0, 2, 3]
