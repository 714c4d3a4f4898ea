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
from attnjax.core.blocks import runs as run_blocks
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite, wide
from attnjax.core.pairwise.attend import Impl, attend
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
    impl: Impl = None,  # noqa: B008
) -> Out:
    """Causal attention through three branches; `gates` (compressed, selected, local) mix them.

    k and v are the selected branch's. `compressed` are phi(pooled.runs(x, length, stride)) of keys
    and values, the means of k's and v's runs if None; `nn.NativeSparse` trains phi. `local` are
    the window's, k and v if None. Selecting, the same in a group of heads, has no gradient. Fewer
    than n blocks are all taken. `mask` forbids more; a run is seen where both its ends are.
    """
    (B, T, N, _), S, (l, d, size, top, window) = q.shape, k.shape[1], branches
    if min(branches) < 1 or l % d or size % d or top < 3:
        raise ValueError(f"branches: {branches}; expected stride to divide length, size; top >= 3")
    if gates.shape not in ((B, T, N, 3), (B, T, 1, 3)):
        raise ValueError(f"gates: shape {gates.shape}; expected (B,T,N or 1,3) = {(B, T, N, 3)}")
    runs = compressed or tuple(wide(run_blocks.runs(x, l, d)).mean(2) for x in (k, v))
    if (n := runs[0].shape[1]) != run_blocks.count_runs(S, l, d):
        raise ValueError(f"compressed: {n} keys; expected {run_blocks.count_runs(S, l, d)} runs")
    seen = masks.causal & mask
    chosen = nsa_blocks(q, k, branches, runs[0], seen)
    a = attend(wide(q), *map(wide, runs), mask=run_blocks.mask_of_runs(seen, T, S, l, d), impl=impl)
    b = attend(q, k, v, blocks=chosen, mask=seen, impl=impl)
    c = attend(q, *(local or (k, v)), mask=seen & masks.window(window - 1), impl=impl)
    gated = (finite(gates[..., i, None]) * wide(x) for i, x in enumerate((a, b, c)))
    return sum(gated).astype(q.dtype)


@functools.partial(jax.jit, static_argnums=2)
def nsa_blocks(q: Q, k: K, branches: Branches, runs: K | None = None, mask=masks.causal):
    """What queries and groups of heads select by compressed keys, means of k's runs if None."""
    (l, d, size, top, _), T, S = branches, q.shape[1], k.shape[1]
    runs, block = (
        run_blocks.runs(k, l, d).mean(2) if runs is None else runs,
        jnp.arange(-(-S // size)),
    )

    def of_rows(w: Array, first: Array) -> Selection:
        mass = select.over_group(jnp.swapaxes(w, 1, 2), runs.shape[2])
        mass = run_blocks.mass_of_blocks(mass, l, d, size, len(block))
        own = (first + jnp.arange(w.shape[2]))[:, None, None] // size
        mass = jnp.where((block == 0) | (block >= own - 1), jnp.inf, mass)
        mass = jnp.where(block > own, -jnp.inf, mass)
        return select.top_k(mass, min(top, len(block)), block_k=size)

    mask = run_blocks.mask_of_runs(mask, T, S, l, d)
    return block_maps.reduce_rows(wide(q), wide(runs), of_rows, mask=mask)


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
