"""Positions of frames: the oracle appends segments, as the released code does; turns."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.kv_decode import frame_positions, turned_frames
from attnjax.ops.kv_decode.streaming_vlm import ANSWER, USER, VISION
from tests.helpers import draw, near


def frame_positions_oracle(kinds, rounds, grid, step=2.0):
    kinds, rounds = np.asarray(kinds), np.asarray(rounds)
    frames, rows, columns = grid
    cells = [(step * t, r, c) for t in range(frames) for r in range(rows) for c in range(columns)]
    out, j = [], 0
    while j < len(kinds):
        start = max((max(place) for place in out), default=-1) + 1
        if kinds[j] == VISION:
            end = j
            while end < len(kinds) and kinds[end] == VISION and rounds[end] == rounds[j]:
                end += 1
            block = [tuple(start + x for x in cell) for cell in cells[: end - j]]
            out += block
            if end == len(kinds):  # a text may end within a block
                break
            j = end
        else:
            out.append((start,) * 3)
            j += 1
    return np.array(out).T


def turned_frames_oracle(x, positions, sections, base=1e6):
    half = x.shape[-1] // 2
    axis = [i for i, n in enumerate(sections) for _ in range(n)]
    out = np.zeros(x.shape)
    for h in range(half):
        angle = np.asarray(positions)[axis[h]] * base ** (-h / half)
        z = (x[..., h] + 1j * x[..., h + half]) * np.exp(1j * angle)[None, :, None]
        out[..., h], out[..., h + half] = z.real, z.imag
    return out


@pytest.mark.parametrize(
    ("grid", "step"), [((2, 2, 3), 0.5), ((3, 1, 4), 2.0), ((1, 3, 4), 1.0), ((12, 1, 1), 1.5)]
)
def test_blocks_of_any_grid(grid, step):
    kinds = np.array([USER, *[VISION] * 12, ANSWER, *[VISION] * 24, ANSWER, ANSWER])
    rounds = np.array([0] * 14 + [1] * 12 + [2] * 14)
    got = frame_positions(jnp.asarray(kinds), jnp.asarray(rounds), grid, step=step)
    near(got, frame_positions_oracle(kinds, rounds, grid, step))


def test_a_block_is_like_itself_elsewhere():
    """Scores between a block's cells do not depend on how much text stands before."""
    vision = lambda n: np.array([USER] * n + [VISION] * 8)
    x = draw(1, 8, 1, 16)
    scores = []
    for n in (1, 5):
        kinds = jnp.asarray(vision(n))
        at = frame_positions(kinds, 0 * kinds, (2, 2, 2))[:, n:]
        turned = turned_frames(x, at, sections=(2, 3, 3))[0, :, 0]
        scores.append(turned @ turned.T)
    near(*scores, 1e-4)


def test_sections_that_do_not_fill_the_width():
    with pytest.raises(ValueError, match=r"sections: \(1, 1, 1\); expected a sum of H / 2 = 4"):
        turned_frames(draw(1, 2, 1, 8), jnp.zeros((3, 2)), sections=(1, 1, 1))
