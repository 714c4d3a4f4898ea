"""Quotas of frames: their oracles, sums, caps, what frames are brought to."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.sparse_select import (
    capped_quotas,
    even_tokens,
    quota_grid,
    resampled,
    token_quotas,
)
from tests.helpers import draw, near, run


def token_quotas_oracle(scores, budget):
    w = (100 * scores) ** 2
    return np.floor(budget * w / w.sum(1, keepdims=True)).astype(int)


def capped_quotas_oracle(scores, budget, most):
    """Water is poured in until the budget is out, or every frame is full: by bisection."""
    out = np.zeros(scores.shape, int)
    for b, w in enumerate((100 * scores) ** 2):
        share, cap = w / w.sum(), most / budget
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if np.minimum(middle * share, cap).sum() < 1 else (low, middle)
            )
        out[b] = np.floor(budget * np.minimum(high * share, cap) * (1 + 1e-6))
    return out


def test_the_budget_is_kept_and_order_with_it():
    scores = jnp.asarray([[0.9, 0.1, 0.4, 0.4, 0.0]])
    for budget in (0, 7, 64):
        n = np.asarray(run(token_quotas, scores, budget=budget))[0]
        assert budget - 5 < n.sum() <= budget or budget == 0 == n.sum()
        assert n[0] >= n[2] == n[3] >= n[1] >= n[4] == 0
    capped = np.asarray(run(capped_quotas, scores, budget=64, most=30))[0]
    assert capped.max() == capped[0] == 30 and 64 - 5 < capped.sum() <= 64
    assert run(capped_quotas, scores[:, :4], budget=64, most=10).tolist() == [[10] * 4]


def test_what_a_frame_is_brought_to():
    assert [quota_grid(n) for n in (1, 2, 4, 5, 6, 11, 12)] == [
        (1, 1), (2, 1), (2, 2), (2, 2), (3, 2), (3, 3), (4, 3)
    ]  # fmt: skip
    frame = draw(1, 16, 3)
    near(resampled(frame, (4, 4), 16), frame)
    near(resampled(frame, (4, 4), 1)[:, 0], frame.mean(1))
    assert even_tokens(16, 4).tolist() == [0, 5, 10, 15]
    with pytest.raises(ValueError, match="count: 0; expected at least 1"):
        quota_grid(0)
