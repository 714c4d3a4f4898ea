"""Between stages and at exits: oracles; shares of examples that thresholds let go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.low_rank import exit_at, exit_thresholds
from tests.helpers import draw
from tests.ops.plain import softmax


def norm(x, w):
    centered = x - x.mean()
    return centered / np.sqrt((centered**2).mean() + 1e-5) * w.scale + w.shift


def latent_transition_oracle(x, weights):
    w, out = weights, []
    for z in x:
        columns = [norm(z[:, c], w.token_norm) @ w.tokens.w + w.tokens.b for c in range(z.shape[1])]
        rows = np.array(columns).T
        out.append([norm(row, w.norm) @ w.channels.w + w.channels.b for row in rows])
    return np.array(out)


def exit_at_oracle(logits, thresholds):
    out = []
    for b in range(logits.shape[1]):
        sure = [softmax(of_stage[b]).max() for of_stage in logits]
        left = [k for k, p in enumerate(sure) if p >= thresholds[k]]
        out.append(left[0] if left else len(logits) - 1)
    return np.array(out)


def exit_thresholds_oracle(sure, shares):
    """Example by example, from the surest on."""
    E, B = sure.shape
    found, gone = [], set()
    for k in range(E - 1):
        least, count = 2.0, 0
        for b in sorted(range(B), key=lambda b: -sure[k, b]):
            count += b not in gone
            if b not in gone and count == int(B * shares[k] // 1):
                least = sure[k, b]
                break
        gone |= {b for b in range(B) if sure[k, b] >= least}
        found.append(least)
    return np.array([*found, 0.0])


@pytest.mark.parametrize("shares", [(0.3, 0.2, 0.4, 0.1), (0.0, 0.5, 0.6, 0.0), (0.9, 0.9, 0.1, 0)])
def test_shares_leave_in_turn(shares):
    sure = np.random.default_rng(1).uniform(0.1, 1.0, (4, 20))
    got = exit_thresholds(jnp.asarray(sure), shares)
    np.testing.assert_allclose(got, exit_thresholds_oracle(sure, shares), rtol=1e-6)


def test_as_many_leave_as_the_shares_say():
    logits = draw(4, 40, 5)
    sure = jax.nn.softmax(logits, axis=-1).max(-1)
    left = np.asarray(exit_at(logits, exit_thresholds(sure, (0.5, 0.25, 0.0, 0.25))))
    assert [(left == k).sum() for k in range(4)] == [20, 10, 0, 10]


def test_as_many_shares_as_exits():
    with pytest.raises(ValueError, match="shares: 2 of them; expected E = 3"):
        exit_thresholds(jnp.ones((3, 5)), (0.5, 0.5))
