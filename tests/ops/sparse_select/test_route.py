"""Routing past a layer: its oracle, what is untouched, later frames, an image that exits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.sparse_select import mixture_of_depths, route
from attnjax.ops.sparse_select.route import mixing
from tests.helpers import draw, draws, near, run

B, T, W = 2, 12, 5
FRAMES = (-1, 0, 0, 0, 0, 1, 1, -1, 1, 1, 2, 2)


def kept_tokens(score, k, frames):
    """[b]: the tokens that are kept, in order."""
    found = []
    for row in score:
        of = {f: [t for t in range(len(row)) if frames[t] == f] for f in set(frames)}
        best = [sorted(ts, key=lambda t, row=row: -row[t])[:k] for f, ts in of.items() if f >= 0]
        found.append(sorted([*of.get(-1, []), *sum(best, [])]))
    return found


def bent(tokens, places):
    return np.tanh(tokens + tokens.mean(0)) + 0.1 * places[:, None]


def mixture_of_depths_oracle(x, score, layer, k, frames=None):
    out, frames = x.copy(), frames or (0,) * x.shape[1]
    for b, at in enumerate(kept_tokens(score, k, frames)):
        more = bent(x[b, at], np.array(at)) if at else []
        for t, add in zip(at, more, strict=True):
            out[b, t] += (1.0 if frames[t] < 0 else score[b, t]) * add
    return out


def test_tokens_that_are_not_routed_keep_their_bits_and_text_goes_through():
    x, score = draws((B, T, W), (B, T))
    out = run(mixture_of_depths, x, score, layer=mixing, k=1, frames=FRAMES)
    kept = run(route, x, score, k=1, frames=FRAMES)
    assert kept.index.shape == (B, 2 + 3)
    for b, at in enumerate(kept_tokens(np.asarray(score), 1, FRAMES)):
        assert kept.index[b].tolist() == at
        np.testing.assert_array_equal(kept.tokens[b], x[b, jnp.asarray(at)])
        rest = np.setdiff1d(np.arange(T), at)
        np.testing.assert_array_equal(out[b, rest], x[b, rest])
        assert (np.abs(np.asarray(out - x)[b, at]) > 0).all()


def test_what_a_later_frame_holds_changes_nothing_before():
    """With a layer that is causal: here tokens one by one."""
    alone = lambda tokens, places: jnp.tanh(tokens)
    x, other = draws((1, T, W), (1, T, W))
    later = x.at[:, 8:].set(other[:, 8:])  # frame 1 has tokens 5, 6 before
    out, again = (
        run(mixture_of_depths, y, y.sum(-1), layer=alone, k=1, frames=FRAMES) for y in (x, later)
    )
    np.testing.assert_array_equal(out[:, :5], again[:, :5])


def test_scores_learn_as_weights():
    x, score = draws((B, T, W), (B, T))
    kept = run(route, x, score, k=3)
    slope = jax.grad(lambda s: mixture_of_depths(x, s, mixing, k=3).sum())(score)
    want = np.zeros((B, T))
    np.put_along_axis(want, np.asarray(kept.index), 1.0, 1)
    np.testing.assert_array_equal(np.asarray(slope) != 0, want > 0)


def test_an_image_exits_and_its_places_stay_free():
    frames = (-1, 0, 0, 0, -1, -1)
    x = draw(B, 6, W)
    left = route(x, jnp.zeros((B, 6)), k=0, frames=frames)
    assert left.index.tolist() == [[0, 4, 5]] * B
    near(left.tokens, x[:, [0, 4, 5]])


def test_mistakes_are_told():
    x, score = draws((B, T, W), (B, T))
    with pytest.raises(ValueError, match=r"frames: shape \(3,\); expected \(T,\) = \(12,\)"):
        route(x, score, k=1, frames=(0, 0, 1))
    with pytest.raises(ValueError, match="k: -1; expected at least 0"):
        route(x, score, k=-1)
