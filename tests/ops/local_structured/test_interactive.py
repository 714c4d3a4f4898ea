"""Interactive attention: the oracle, bounds, tokens in another order."""

import numpy as np

from attnjax.ops.local_structured import interactive_attention
from attnjax.ops.local_structured.interactive import OPS
from tests.helpers import near, weights_of
from tests.ops.plain import blend, weights


def interactive_attention_oracle(q, k, v, alpha, mixing):
    N, H, K = q.shape[2], q.shape[3], k.shape[2]
    score = lambda b, n, i, j: (
        alpha[n] * np.tanh(q[b, i, n] @ k[b, j, n * K // N] / H) + mixing[n, i, j]
    )
    return blend(weights(q, k, None, normalize=lambda x: x, logit=score), v)


def test_weights_stay_within_alpha_of_the_learned_ones():
    given = OPS[0].sample()
    alpha, mixing = np.abs(np.asarray(given["alpha"])), given["mixing"]
    args = 50 * given["q"], given["k"], alpha, mixing
    off = np.abs(weights_of(interactive_attention, *args) - mixing)
    assert (off <= alpha[:, None, None] + 1e-5).all()
    assert (off.max((0, 2, 3)) > 0.99 * alpha).all()


def test_tokens_in_another_order_where_m_knows_none():
    given = OPS[0].sample()
    level = np.full(given["mixing"].shape, 1 / 9, np.float32)
    order = np.random.default_rng(0).permutation(9)
    turned = {name: given[name][:, order] for name in "qkv"}
    out = interactive_attention(**given | {"mixing": level})
    near(interactive_attention(**given | turned | {"mixing": level}), out[:, order])
