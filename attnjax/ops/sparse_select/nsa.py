"""Native sparse attention: compressed runs, selected blocks and a window, mixed by gates.

    o_t = sum_c gate_tc Attn(q_t, K_c, V_c),    c = compressed, selected, local
    compressed: phi of each run of l tokens, at strides of d;    local: the last w tokens
    selected: the tokens of n blocks of l': the first, the query's own, the one before, and those of
        largest importance_j = sum over the group's heads, the strides u in block j and the
        runs i that cover u of p_i,    p = softmax(q_t . K_compressed / sqrt(H))

Paper: Yuan et al., "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse
Attention", 2025, arXiv:2502.11089, equations 5 to 12.
Limits: of one branch alone: all blocks, and runs of one token, are causal attention.
Differs: equations 7 and 9 number runs and blocks from one; here both start at the first token.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import block_maps, select
from attnjax.core.blocks.runs import count_runs, mask_of_runs, mass_of_blocks
from attnjax.core.blocks.runs import runs as runs_of
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted, uniform
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


class Branches(NamedTuple):
    """The paper's l, d, l', n and w; `stride` divides `length` and `size`, `top` is at least 3."""

    length: int = 32
    stride: int = 16
    size: int = 64
    top: int = 16
    window: int = 512


BRANCHES = Branches()


@of_whole_text
@on_any_mesh
def native_sparse_attention(
    q: Q,
    k: K,
    v: V,
    gates: Float[Array, "B T N 3"],
    *,
    compressed: tuple[K, V] | None = None,
    local: tuple[K, V] | None = None,
    branches: Branches = BRANCHES,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Causal attention through three branches; `gates` (compressed, selected, local) mix them.

    k and v are the selected branch's. `compressed` are phi(runs(x, length, stride)) of keys
    and values, the means of k's and v's runs if None; `nn.NativeSparse` trains phi. `local` are
    the window's, k and v if None. Selecting, the same in a group of heads, has no gradient. Fewer
    than n blocks are all taken. `mask` forbids more; a run is seen where both its ends are.
    """
    b, seen = branches, masks.causal & mask
    _check(q, gates, b)
    runs = compressed or (mean_runs(k, b), mean_runs(v, b))
    count = count_runs(k.shape[1], b.length, b.stride)
    if runs[0].shape[1] != count:
        raise ValueError(f"compressed: {runs[0].shape[1]} keys; expected {count} runs")
    of_runs = mask_of_runs(seen, q.shape[1], k.shape[1], b.length, b.stride)
    chosen = nsa_blocks(q, k, b, runs[0], seen)
    parts = (
        attend(wide(q), *map(wide, runs), mask=of_runs, impl=impl),
        attend(q, k, v, blocks=chosen, mask=seen, impl=impl),
        attend(q, *(local or (k, v)), mask=seen & masks.window(b.window - 1), impl=impl),
    )
    gated = (finite(gates[..., c, None]) * wide(part) for c, part in enumerate(parts))
    return sum(gated).astype(q.dtype)


def _check(q: Q, gates: Array, b: Branches) -> None:
    if min(b) < 1 or b.length % b.stride or b.size % b.stride or b.top < 3:
        raise ValueError(f"branches: {b}; expected stride to divide length, size; top >= 3")
    shape = q.shape[:3]
    if gates.shape not in ((*shape, 3), (*shape[:2], 1, 3)):
        raise ValueError(f"gates: shape {gates.shape}; expected (B,T,N or 1,3) = {(*shape, 3)}")


def mean_runs(x: K, b: Branches) -> Float[Array, "B n K H"]:
    """The mean of each run of tokens, wide: phi of the compressed branch if none is given."""
    return wide(runs_of(x, b.length, b.stride)).mean(2)


@functools.partial(jax.jit, static_argnums=2)
def nsa_blocks(
    q: Q,
    k: K,
    branches: Branches,
    runs: Float[Array, "B n K H"] | None = None,
    mask: masks.Mask = masks.causal,
) -> Selection:
    """What queries and groups of heads select by compressed keys, means of k's runs if None.

    The importance of a block is the weight of the runs that reach into it; the first block and the
    two latest are always selected.
    """
    b, S = branches, k.shape[1]
    runs = mean_runs(k, b) if runs is None else runs
    count = -(-S // b.size)
    block = jnp.arange(count).reshape(1, 1, 1, -1)

    def of_rows(w: Array, first: Array) -> Selection:
        group = select.over_group(jnp.swapaxes(w, 1, 2), runs.shape[2])
        importance = mass_of_blocks(group, b.length, b.stride, b.size, count)
        own = (first + jnp.arange(w.shape[2]))[None, :, None, None] // b.size
        importance = jnp.where((block == 0) | (block >= own - 1), jnp.inf, importance)
        importance = jnp.where(block > own, -jnp.inf, importance)
        return select.top_k(importance, b.top, block_k=b.size)

    of_runs = mask_of_runs(mask, q.shape[1], S, b.length, b.stride)
    return block_maps.reduce_rows(wide(q), wide(runs), of_rows, mask=of_runs)


def _alone(says: str, branch: int, branches: Branches, mask: masks.Mask) -> Limit:
    only = adjusted(lambda gates: np.broadcast_to(np.arange(3) == branch, gates.shape) * 1.0)
    plain = functools.partial(multi_head_attention, mask=mask)
    return Limit(says, {"gates": only, "branches": branches}, plain)


OPS = (
    Op(
        native_sparse_attention,
        papers=(214,),
        draw={"gates": uniform(0.1, 1.0), "branches": Branches(2, 1, 2, 4, 3)},
        sizes={"T": 13, "S": 13},
        exempt={"grouped": "query heads that share keys select together"},
        limits=(
            _alone(
                "all blocks alone are causal attention", 1, Branches(2, 1, 2, 7, 3), masks.causal
            ),
            _alone("runs of one token alone are, too", 0, Branches(1, 1, 2, 4, 3), masks.causal),
            _alone(
                "the local branch alone is a window", 2, Branches(2, 1, 2, 4, 3), masks.window(2)
            ),
        ),
    ),
)
