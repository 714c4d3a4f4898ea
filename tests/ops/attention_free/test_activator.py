"""The Activator block: its oracle; tokens that never meet."""

import jax
import numpy as np

from attnjax.ops.attention_free import activator_block
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import gelu


def activator_block_oracle(x, weights):
    def normed(u, norm):
        u = u - u.mean()
        return u / np.sqrt((u**2).mean() + 1e-5) * norm.scale + norm.shift

    w, out = weights, np.zeros_like(x)
    for b, t in np.ndindex(x.shape[:2]):
        n = normed(x[b, t], w.norm)
        u = normed(gelu(n @ w.gate.w + w.gate.b), w.inner_norm)
        v = normed(n @ w.value.w + w.value.b, w.inner_norm)
        out[b, t] = x[b, t] + (u * v) @ w.out.w + w.out.b
    return out


block = jax.jit(activator_block)
WEIGHTS = BY_NAME["activator_block"].sample()["weights"]


def test_a_token_changes_itself_alone():
    x = draw(1, 5, 8)
    changed = np.abs(block(x.at[0, 2].add(draw(8, seed=1)), WEIGHTS) - block(x, WEIGHTS)).max(-1)
    assert np.nonzero(changed[0])[0].tolist() == [2]


def test_the_size_of_the_second_map_does_not_count():
    value = WEIGHTS.value._replace(b=0 * WEIGHTS.value.b)
    larger = value._replace(w=7 * value.w)
    x = draw(2, 5, 8)
    near(block(x, WEIGHTS._replace(value=larger)), block(x, WEIGHTS._replace(value=value)), 1e-3)
