"""Block top-k for decoding: sinks, a window, and the blocks of keys that a group scores highest.

    c_i  = max(i + 1 - window - sinks, 0) // block      how many blocks lie behind the window
    s_ib = mean over the query heads of a group of q_i . mean(k in block b),    b < c_i
    A_ij = softmax_j(q_i . k_j / sqrt(H)) over j < sinks, the top_k blocks of largest s_ib, and
           all keys from the end of block c_i - 1 up to i

Blocks begin behind the sinks, so that the window has between `window` and window + block - 1 keys.
What a long generation costs, with memory counted in FLOPs, `dense_costs` and `block_costs` tell.

Paper: Sadhukhan et al., "Kinetics: Rethinking Test-Time Scaling Laws", 2025, arXiv:2506.05333;
code: Infini-AI-Lab/Kinetics.
Limits: sinks + window + top_k * block of all keys is causal attention.
Differs: the released code leaves the first layer dense.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.blocks import select
from attnjax.core.blocks.selection import Selection
from attnjax.core.numerics import finite
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import K, Out, Q, V


@dataclass(frozen=True)
class Generation:
    """n samples of `output` tokens behind a prompt; heads are those of all layers together.

    `intensity` is how many FLOPs a device does in the time that it takes to read a byte.
    """

    prompt: int
    output: int
    parameters: float
    heads: int
    kv_heads: int
    width: int
    samples: int = 1
    intensity: float = 562.5


class Costs(NamedTuple):
    """FLOPs, and the bytes of keys and values read, in FLOPs of the same time."""

    compute: float
    memory: float


def dense_costs(g: Generation) -> Costs:
    """Of full attention; the samples share the prompt's keys.  Weights read are left out.

    compute = n (2 P o + 2 (2 p + o) o N H),    memory = 2 (2 p + n o) o K H intensity
    """
    p, o, n = g.prompt, g.output, g.samples
    compute = n * (2 * g.parameters * o + 2 * (2 * p + o) * o * g.heads * g.width)
    memory = 2 * (2 * p + n * o) * o * g.kv_heads * g.width * g.intensity
    return Costs(compute, memory)


def block_costs(g: Generation, budget: int, block: int) -> Costs:
    """Of `budget` keys a token, window and blocks, chosen by one key for each block.

    s       = budget o - max(0, budget - p)^2 / 2
    compute = n (2 P o + 4 s N H + (2 p + o) // block o N H)
    memory  = (4 n s + (2 p + n o) // block o) K H intensity
    """
    p, o, n = g.prompt, g.output, g.samples
    read = budget * o - max(0, budget - p) ** 2 / 2
    search = (2 * p + o) // block * o
    compute = n * (2 * g.parameters * o + (4 * read + search) * g.heads * g.width)
    memory = (4 * n * read + (2 * p + n * o) // block * o) * g.kv_heads * g.width
    return Costs(compute, memory * g.intensity)


@of_whole_text
@on_any_mesh
def block_top_k_attention(
    q: Q,
    k: K,
    v: V,
    *,
    top_k: int = 64,
    block: int = 16,
    sinks: int = 4,
    window: int,
    impl: Impl = None,
) -> Out:
    """The queries are the last T of S tokens: a step of decoding, some of them, or a whole text.

    Query heads that share keys choose together.  Costs S / block scores for each of them beside
    attention to at most sinks + top_k * block + window + block - 1 keys.
    """
    if window < 1 or sinks < 0 or block < 1:
        raise ValueError(
            f"window, sinks, block: {window}, {sinks}, {block}; expected at least 1, 0 and 1"
        )
    shift = -sinks % block  # so many empty places in front let blocks begin behind the sinks
    k, v = (jnp.pad(x, ((0, 0), (shift, 0), (0, 0), (0, 0))) for x in (k, v))
    T, S = q.shape[1], k.shape[1]
    at = np.arange(S - T, S)
    first = (sinks + shift) // block  # the first block that may be chosen, or not
    end = first + np.maximum(at + 1 - shift - window - sinks, 0) // block

    scores = select.dot_scores(finite(q), select.mean_pool(finite(k), block))
    scores = select.over_group(scores, k.shape[2])  # a sum ranks as a mean does
    b = np.arange(scores.shape[-1])
    behind = (b >= first) & (b < end[:, None])
    chosen = select.top_k(jnp.where(behind[:, None], scores, -jnp.inf), top_k, block_k=block)
    always = np.concatenate(
        [
            np.broadcast_to(np.arange(first), (T, first)),
            end[:, None] + np.arange((window + 2 * block - 2) // block),
        ],
        axis=1,
    )
    begun = (always * block <= at[:, None]) & (always < len(b))
    return attend(
        q,
        k,
        v,
        blocks=_with(chosen, always, begun),
        mask=masks.causal & ~masks.prefix(shift),
        q_positions=at,
        impl=impl,
    )


def _with(chosen: Selection, indices: np.ndarray, valid: np.ndarray) -> Selection:
    """Blocks of each query, (T,n), beside those that were chosen."""
    shape = (*chosen.indices.shape[:3], indices.shape[1])
    more = jnp.broadcast_to(indices[None, :, None].astype(np.int32), shape)
    ok = jnp.broadcast_to(valid[None, :, None], shape)
    return Selection(
        jnp.concatenate([chosen.indices, more], axis=-1),
        jnp.concatenate([chosen.valid, ok], axis=-1),
        chosen.block_q,
        chosen.block_k,
    )


def _causal_to_end(q: Q, k: K, v: V) -> Out:
    return multi_head_attention(q, k, v, mask=masks.causal_to_end)


OPS = (
    Op(
        block_top_k_attention,
        papers=(61,),
        reads="past",
        draw={"top_k": 1, "block": 2, "sinks": 1, "window": 2},
        limits=(Limit("a budget of all keys: attention", {"top_k": 99}, _causal_to_end),),
        exempt={"grouped": "query heads that share keys choose together"},
    ),
)
