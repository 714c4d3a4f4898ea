"""Geometric transform attention: tokens meet in each other's frame of reference (GTA).

    q'_i = P_i^-T q_i,    k'_j = P_j k_j,    v'_j = P_j v_j
    out_i = P_i^-1 sum_j softmax_j(q'_i . k'_j / sqrt(H)) v'_j
          = sum_j softmax_j(q_i . P_i^-1 P_j k_j / sqrt(H)) P_i^-1 P_j v_j
    P_i = diag(pose_i, ..., pose_i, turn(angle_i1), ..., turn(angle_iR)),    pose_i = [A t; 0 1]

A is a rotation. Only P_i^-1 P_j matters, so the frame that all poses are told in does not.

Paper: Miyato et al., "GTA: A Geometry-Aware Attention Mechanism for Multi-View Transformers", 2023,
arXiv:2310.10375, section 3; code: autonomousvision/gta. P is the paper's rho(g)^-1.
Limits: poses of no motion and angles of zero are softmax attention.
Differs: the code multiplies the translation t of all poses by a trained number of the layer, 0.01
at first: hand such poses over. Its other groups, SO(3) and translations of the plane, are not here.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import clean, einsum, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V

QueryPose = Float[Array, "B T 4 4"]
KeyPose = Float[Array, "B S 4 4"]


@on_any_mesh
def geometric_transform_attention(
    q: Q,
    k: K,
    v: V,
    q_pose: QueryPose,
    k_pose: KeyPose,
    q_angles: Float[Array, "B T R"],
    k_angles: Float[Array, "B S R"],
    *,
    impl: Impl = None,
) -> Out:
    """Softmax attention to all keys, as tokens at other poses and angles see them.

    poses    rigid motions (rotation and translation) of what a token belongs to, a camera say, for
             the first H - 2R channels, four by four
    angles   of R planes of two neighboring channels, the last; see `image_angles`

    v is as wide as q. With masks or mods: `into_frame` and `out_of_frame` around `attend`.
    """
    turned = into_query_frame(q, q_pose, q_angles)
    seen = into_frame(k, k_pose, k_angles)
    values = into_frame(v, k_pose, k_angles)
    out = attend(turned, seen, values, impl=impl)
    return out_of_frame(out, q_pose, q_angles).astype(q.dtype)


def into_frame(x: K, pose: KeyPose, angles: Float[Array, "B S R"]) -> K:
    """P x, wide: of keys and values."""
    return _blocks(x, pose, angles)


def into_query_frame(x: Q, pose: QueryPose, angles: Float[Array, "B T R"]) -> Q:
    """P^-T x, wide: of queries."""
    return _blocks(x, jnp.swapaxes(inverse_motion(pose), -1, -2), angles)


def out_of_frame(x: Q, pose: QueryPose, angles: Float[Array, "B T R"]) -> Q:
    """P^-1 x, wide: of results."""
    return _blocks(x, inverse_motion(pose), -angles)


def inverse_motion(pose: QueryPose) -> QueryPose:
    """[A^T, -A^T t; 0 1], the inverse of a rigid motion [A t; 0 1]."""
    pose = wide(pose)
    back = jnp.swapaxes(pose[..., :3, :3], -1, -2)
    moved = -einsum("...ij,...jk->...ik", back, pose[..., :3, 3:])
    return jnp.concatenate([jnp.concatenate([back, moved], -1), pose[..., 3:, :]], -2)


def _blocks(x: Q, pose: QueryPose, angles: Float[Array, "B T R"]) -> Q:
    """Fours of channels times the pose, then pairs of channels turned by the angles."""
    H, R = x.shape[-1], angles.shape[-1]
    if (H - 2 * R) % 4 or H < 2 * R:
        raise ValueError(f"angles: R = {R} planes of width {H}; expected H - 2R in fours for poses")
    x, bad = clean(wide(x))
    fours = x[..., : H - 2 * R].reshape(*x.shape[:-1], (H - 2 * R) // 4, 4)
    moved = einsum("BTij,BTNcj->BTNci", pose, fours)
    pairs = x[..., H - 2 * R :].reshape(*x.shape[:-1], R, 2)
    cos, sin = (wave(wide(angles))[:, :, None] for wave in (jnp.cos, jnp.sin))
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    flat = (y.reshape(*x.shape[:-1], y.shape[-2] * y.shape[-1]) for y in (moved, turned))
    return jnp.concatenate(list(flat), axis=-1) + bad[..., None]


def image_angles(rows: int, columns: int, octaves: int, highest: float = 1.0) -> np.ndarray:
    """Angles (rows * columns, 2 octaves) of the cells of an image in row-major order.

    2 pi highest 2^(f - octaves) times the share of the rows, then of the columns, above and left
    of the cell, f = 1 .. octaves.
    """
    cells = np.stack(np.meshgrid(np.arange(rows) / rows, np.arange(columns) / columns), -1)
    rates = 2 * np.pi * highest * 2.0 ** (np.arange(1, octaves + 1) - octaves)
    cells = cells.transpose(1, 0, 2).reshape(-1, 1, 2)
    return (rates[:, None] * cells).reshape(rows * columns, 2 * octaves)


def _motions(slot: Slot) -> np.ndarray:
    """Random rigid motions."""
    shape = slot.shape[:2]
    pose = np.zeros((*shape, 4, 4))
    pose[..., :3, :3] = np.linalg.qr(slot.rng.standard_normal((*shape, 3, 3)))[0]
    pose[..., :3, 3] = slot.rng.standard_normal((*shape, 3))
    pose[..., 3, 3] = 1.0
    return pose


_still = Draw(lambda slot: np.broadcast_to(np.eye(4), slot.shape))

OPS = (
    Op(
        geometric_transform_attention,
        papers=(73,),
        reads="all",
        sizes={"R": 2},
        draw={"q_pose": Draw(_motions), "k_pose": Draw(_motions)},
        limits=(
            Limit(
                "no motion and no angles: softmax attention",
                {"q_pose": _still, "k_pose": _still, "q_angles": fill(0.0), "k_angles": fill(0.0)},
                multi_head_attention,
            ),
        ),
    ),
)
