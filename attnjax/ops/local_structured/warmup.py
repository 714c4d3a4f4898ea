"""Attention of a stream of frames: to a few warm-up frames for ever, and to the latest ones.

    frame t < S sees the warm-up frames 0 .. S - 1, t >= S sees them and t - L + 1 .. t, not below S
    s_tj = (q_t + a[slot of t]) . (k_j + b[slot of j]) / sqrt(H),    values v_j + c[slot of j]
    slots are places in a cache of M = S + L frames: t and j as long as t < M, afterwards M - 1 for
    t itself, M - 1 - (t - j) for the latest frames and j for those of the warm-up

a, b and c are the position code of a slot through the maps of q, k and v: a cache holds keys and
values without, and what a frame sees does not depend on how long the stream has run. Each step of
denoising has a cache of its own, so that frames of different noise run as one batch.

Paper: Xing et al., "Live2Diff: Live Stream Translation via Uni-directional Attention in Video
Diffusion Models", 2024, arXiv:2407.08701, section 4.1; code: open-mmlab/Live2Diff.
Limits: no warm-up and codes of zero are a sliding window of M frames.
"""

from typing import NamedTuple

import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import aligned, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


class SlotCodes(NamedTuple):
    """Of M slots, for queries, keys and values."""

    q: Float[Array, "M N H"]
    k: Float[Array, "M K H"]
    v: Float[Array, "M K D"]


@of_whole_text
@on_any_mesh
def warmup_attention(
    q: Q, k: TokenK, v: TokenV, codes: SlotCodes, *, warmup: int = 8, impl: Impl = None
) -> Out:
    """T frames of a stream at one place of the picture; M - warmup are the latest that are seen.

    O(T M) time and memory. Raises ValueError for a warm-up longer than the M slots.
    """
    (B, T, N, H), M = q.shape, len(codes.q)
    if not 0 <= warmup <= M:
        raise ValueError(f"warmup: {warmup}; expected from 0 to M = {M} slots")
    own, frames, seen = _slots(T, M, warmup)
    q_own = wide(q) + aligned(codes.q[own], q)
    cached = lambda x, code: wide(x)[:, frames] + aligned(code, x[:, frames])
    apart = lambda x: x.reshape(B * T, M, *x.shape[3:])
    ids = np.tile(np.where(seen, 0, -1), (B, 1))
    out = attend(
        q_own.reshape(B * T, 1, N, H),
        apart(cached(k, codes.k)),
        apart(cached(v, codes.v)),
        mask=masks.document(np.zeros((B * T, 1), int), ids),
        impl=impl,
    )
    return out.reshape(B, T, N, v.shape[3]).astype(q.dtype)


def _slots(T: int, M: int, warmup: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slot of each frame (T,), the frames in the slots (T,M), and whether they are seen."""
    t, slot = np.arange(T)[:, None], np.arange(M)[None, :]
    frames = np.where((t < M) | (slot < warmup), slot, t - (M - 1) + slot)
    seen = (slot < warmup) | (slot <= t)
    return np.minimum(t[:, 0], M - 1), np.minimum(frames, T - 1), seen & (frames < T)


def _silent(codes: SlotCodes) -> SlotCodes:
    return SlotCodes(*(0 * code for code in codes))


def _sliding(q: Q, k: TokenK, v: TokenV, codes: SlotCodes) -> Out:
    return attend(q, k, v, mask=masks.window(len(codes.q) - 1))


OPS = (
    Op(
        warmup_attention,
        papers=(269,),
        reads="all",
        sizes={"M": 8},
        draw={"warmup": 6},
        exempt={"grouped": "the codes belong to key heads, and would have to be repeated, too"},
        limits=(
            Limit(
                "no warm-up and codes of zero slide",
                {"codes": adjusted(_silent), "warmup": 0},
                _sliding,
            ),
        ),
    ),
)
