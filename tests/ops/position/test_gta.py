"""Geometric transform attention: its oracle, frames that do not matter, and rotary positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core.positions import rotary
from attnjax.op import Op
from attnjax.ops.position import (
    geometric_transform_attention,
    image_angles,
    into_frame,
    into_query_frame,
)
from tests.helpers import draws, near
from tests.ops.plain import kv, softmax


def geometric_transform_attention_oracle(q, k, v, q_pose, k_pose, q_angles, k_angles):
    """Pairs as the paper has them: what query i sees of key j is P_i^-1 P_j of it."""
    (B, T, N, H), S, R = q.shape, k.shape[1], q_angles.shape[-1]

    def matrix(pose, angles):
        P = np.zeros((H, H))
        for c in range(0, H - 2 * R, 4):
            P[c : c + 4, c : c + 4] = pose
        for r, angle in enumerate(angles):
            c = H - 2 * R + 2 * r
            P[c : c + 2, c : c + 2] = [
                [np.cos(angle), -np.sin(angle)],
                [np.sin(angle), np.cos(angle)],
            ]
        return P

    out = np.zeros((B, T, N, H))
    for b, i, n in np.ndindex(B, T, N):
        back = transposed_motion(matrix, q_pose[b, i], q_angles[b, i])
        seen = [back @ matrix(k_pose[b, j], k_angles[b, j]) for j in range(S)]
        g = kv(q, k, n)
        scores = [q[b, i, n] @ seen[j] @ k[b, j, g] / np.sqrt(H) for j in range(S)]
        for weight, j in zip(softmax(np.array(scores)), range(S), strict=True):
            out[b, i, n] += weight * seen[j] @ v[b, j, g]
    return out


def transposed_motion(matrix, pose, angles):
    """The inverse of P as that of rigid motions is: A^T and -A^T t, also where A is no rotation."""
    A, t = pose[:3, :3], pose[:3, 3]
    inverse = np.block([[A.T, -(A.T @ t)[:, None]], [pose[3:]]])
    return matrix(inverse, -angles)


def sample():
    from attnjax.ops.position.gta import OPS

    return Op.sample(OPS[0], seed=3)


def test_a_common_frame_does_not_matter():
    args = sample()
    other = args["k_pose"][:, 3:4]
    moved = {n: args[n] @ other for n in ("q_pose", "k_pose")}  # all in another world
    left = {n: other @ args[n] for n in ("q_pose", "k_pose")}
    want = geometric_transform_attention(**args)
    near(geometric_transform_attention(**args | left), want, 1e-4)
    assert abs(geometric_transform_attention(**args | moved) - want).max() > 0.01


def test_one_index_without_poses_is_rotary():
    """Scores depend on differences, channels paired as neighbors."""
    q, k = draws((1, 5, 1, 4), (1, 5, 1, 4))
    t = jnp.arange(5.0)[None, :, None]
    angles = t * jnp.array([1.0, 0.01])
    still = jnp.broadcast_to(jnp.eye(4), (1, 5, 4, 4))
    got = into_query_frame(q, still, angles), into_frame(k, still, angles)
    order = jnp.array([0, 2, 1, 3])
    want = (rotary(x[..., order], jnp.arange(5))[..., order] for x in (q, k))
    for x, y in zip(got, want, strict=True):
        near(x, y)


def test_angles_of_an_image():
    """Octaves first, in each the row, then the column."""
    angles = image_angles(2, 4, 3)
    assert angles.shape == (8, 6)
    for cell in range(8):
        row, column = divmod(cell, 4)
        for f in range(3):
            turn = 2 * np.pi * 2.0 ** (f + 1 - 3)
            near(angles[cell, 2 * f : 2 * f + 2], [turn * row / 2, turn * column / 4], 1e-12)


def test_widths_that_do_not_fit():
    args = sample()
    with pytest.raises(ValueError, match="R = 3 planes of width 8; expected H - 2R in fours"):
        geometric_transform_attention(**args | {"q_angles": jnp.zeros((2, 9, 3))})
