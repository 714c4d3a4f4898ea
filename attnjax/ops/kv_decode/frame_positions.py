"""Positions in time, row and column: of text all alike, of a block of frames by its grid.

    a word              (p, p, p), p one more than the largest number before
    cell (t, r, c)      (p + step t, p + r, p + c), p as for the first cell of its block
    a block of frames   is followed by p + max(step (frames - 1), rows - 1, columns - 1) + 1
    turned_frames       channels h and h + H/2 turn by position x base^(-2h/H), of the time for the
                        first of the sections of h, of the row for the second, then of the column

A cache whose tokens move keeps keys before they are turned and numbers what it has anew:

    tokens = streaming_vlm(kinds, rounds, now);  there = jnp.maximum(tokens, 0)
    at = frame_positions(kinds[there], rounds[there], (frames, rows, columns))
    k = turned_frames(take_tokens(k, there[None, :, None]), at)

Paper: Xu et al., "StreamingVLM: Real-Time Understanding for Infinite Video Streams", 2025,
arXiv:2510.09608; code: mit-han-lab/streaming-vlm, `get_rope_index` of qwen2_5,
`apply_multimodal_rotary_pos_emb`.
Limits: of text alone, positions are 0, 1, 2, ... on every axis, and turns are `rotary`.
Differs: every block has the same grid, and neighboring cells of one round are one block; the code
finds blocks by their first and last tokens, each with a grid of its own.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.positions import rotary
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, by_sizes
from attnjax.ops.kv_decode.streaming_vlm import ANSWER, SYSTEM, USER, VISION
from attnjax.typing import Array, Float, Int

Tokens = Int[Array, " S"]
Grid = tuple[int, int, int]


def frame_positions(
    kinds: Tokens, rounds: Tokens, grid: Grid, *, step: float = 2.0
) -> Float[Array, "3 S"]:
    """Times, rows and columns of the tokens in their order; float32.

    grid is (frames, rows, columns) of a block, whole blocks; step is the time between its frames:
    twice the seconds of one times the positions of a second, in Qwen2.5-VL.
    """
    frames, rows, columns = grid
    new = jnp.concatenate([jnp.ones(1, bool), jnp.diff(rounds) != 0])
    after_text = jnp.concatenate([jnp.ones(1, bool), kinds[:-1] != VISION])
    vision = kinds == VISION
    first = vision & (new | after_text)
    extent = max(step * (frames - 1), rows - 1, columns - 1) + 1
    adds = jnp.where(vision, jnp.where(first, extent, 0.0), 1.0)
    ends = jnp.cumsum(adds)
    place = jnp.arange(kinds.size)
    cell = place - lax.cummax(jnp.where(first, place, 0))
    in_grid = (cell // (rows * columns), cell // columns % rows, cell % columns)
    time, row, column = (x.astype(ends.dtype) for x in in_grid)
    along = jnp.stack([step * time, row, column])
    return jnp.where(vision[None], ends[None] - extent + along, ends[None] - 1.0)


@on_any_mesh
def turned_frames(
    x: Float[Array, "B T N H"],
    positions: Float[Array, "3 T"] | Int[Array, "3 T"],
    *,
    sections: tuple[int, int, int],
    base: float = 1e6,
) -> Float[Array, "B T N H"]:
    """Queries or keys turned; `sections`: how many h turn by time, row and column, of H/2.

    They are (16, 24, 24) for H = 128 in Qwen2.5-VL.
    """
    half = x.shape[-1] // 2
    if sum(sections) != half:
        raise ValueError(f"sections: {sections}; expected a sum of H / 2 = {half}")
    axis = np.tile(np.repeat(np.arange(3), sections), 2)[None, None, None]
    time, row, column = (rotary(x, positions[i], base) for i in range(3))
    return jnp.where(axis == 0, time, jnp.where(axis == 1, row, column)).astype(x.dtype)


def _counted(kinds: Tokens) -> Float[Array, "3 S"]:
    return jnp.broadcast_to(jnp.arange(kinds.size, dtype=jnp.float32), (3, kinds.size))


def _turned(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    return rotary(x, jnp.arange(x.shape[1]), 1e6)


def _kinds(slot: Slot) -> np.ndarray:
    """A prompt, then rounds of two frames of two cells, a word of the user and two of an answer."""
    rounds = [VISION] * 4 + [USER, ANSWER, ANSWER]
    return np.array([SYSTEM, SYSTEM, *rounds * slot.sizes["S"]])[: slot.sizes["S"]]


def _places(slot: Slot) -> np.ndarray:
    """Words and cells in turns."""
    T = slot.sizes["T"]
    return np.arange(T) + np.arange(3)[:, None] * (np.arange(T) % 4)


OPS = (
    Op(
        frame_positions,
        papers=(339,),
        draw={
            "kinds": Draw(_kinds),
            "rounds": by_sizes(lambda z: np.maximum(np.arange(z["S"]) - 2, 0) // 7),
            "grid": (2, 1, 2),
        },
        sizes={"S": 23},
        limits=(
            Limit(
                "text alone is counted",
                {"kinds": by_sizes(lambda z: np.full(z["S"], USER))},
                _counted,
            ),
        ),
    ),
    Op(
        turned_frames,
        papers=(339,),
        draw={"positions": Draw(_places), "sections": (1, 2, 1)},
        limits=(
            Limit(
                "text turns as ever",
                {"positions": by_sizes(lambda z: np.tile(np.arange(z["T"]), (3, 1)))},
                _turned,
            ),
        ),
    ),
)
