"""Agent attention: a few agents read from all tokens, and all tokens read from the agents.

    V_A = softmax(A K^T / sqrt(H) + B_1) V
    O   = softmax(Q A^T / sqrt(H) + B_2) V_A + DWC(V)                        time O((T + S) M)

A are M agents, queries pooled over a grid; DWC is a depthwise convolution of the map of values: a
linear attention with feature maps softmax(Q A^T) and softmax(A K^T)^T.

Paper: Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", 2023,
arXiv:2312.08874, section 4.
Limits: with one agent every token gets what it reads.
Differs: keys lie on the grid of the queries; the convolution has no bias; windows of agents do not
overlap, also where they do not divide the grid.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import mods
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.scan.convolution import depthwise_of_heads
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, Sizes, Slot, by_sizes, grid, square_grid
from attnjax.ops.low_rank.linformer import mean_pool_projection, project_tokens
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def agent_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    shape: Sequence[int],
    agents: Sequence[int] | Float[Array, "B M N H"] = (7, 7),
    biases: tuple[Float[Array, "N M S"], Float[Array, "N T M"]] | None = None,
    kernel: Float[Array, "... N D"] | None = None,
    impl: Impl = None,
) -> Out:
    """Softmax attention over agents, for tokens that are the cells of a grid in row-major order.

    shape     the grid of the tokens, 1 to 3 axes
    agents    the grid of the agents, each the mean of the queries in its window; or the agents
    biases    B_1 and B_2, see `place_bias`
    kernel    DWC's, (3,3,N,D) or another size; None leaves it out
    """
    T, S = q.shape[1], k.shape[1]
    if math.prod(shape) != T or (kernel is not None and S != T):
        raise ValueError(f"shape: {tuple(shape)}; expected T = {T} and S = {S} cells")
    if isinstance(agents, Sequence):
        agents = _pooled(q, shape, agents)
    of_keys, of_queries = (), ()
    if biases is not None:
        of_keys, of_queries = ((mods.pair_bias(bias[None]),) for bias in biases)
    read = attend(wide(agents), wide(k), wide(v), mods=of_keys, impl=impl)
    out = attend(wide(q), wide(agents), read, mods=of_queries, impl=impl)
    if kernel is not None:
        out = out + depthwise_of_heads(repeat_heads(v, q), kernel, shape)
    return out.astype(q.dtype)


def _pooled(q: Q, shape: Sequence[int], agents: Sequence[int]) -> Float[Array, "B M N H"]:
    """The means of the queries in windows of the grid, as many on each axis as `agents` says."""
    if len(agents) != len(shape):
        raise ValueError(f"agents: {tuple(agents)}; expected one number for each of {shape}")
    if any(n > cells for n, cells in zip(agents, shape, strict=True)):
        raise ValueError(
            f"agents: {tuple(agents)}; expected no more along an axis than the {tuple(shape)} cells"
        )
    pool = functools.reduce(jnp.kron, map(mean_pool_projection, shape, agents))
    return project_tokens("agents", pool, q, q.shape[2])


def place_bias(blocks: Float[Array, "N M ..."], *axes: Float[Array, "N M X"]) -> Array:
    """Biases (N,M,T) at (i,j): blocks(i,j), bilinear from (N,M,r,c), + rows[i] + columns[j]."""
    heads = blocks.shape[:2]
    shape = tuple(x.shape[-1] for x in axes)
    total = jax.image.resize(wide(blocks), (*heads, *shape), "linear", antialias=False)
    for axis, x in enumerate(axes):
        others = [2 + other for other in range(len(axes)) if other != axis]
        total += jnp.expand_dims(wide(x), others)
    return total.reshape(*heads, -1)


def _few(z: Sizes) -> tuple[int, ...]:
    """At most two agents on each axis."""
    return tuple(min(2, n) for n in grid(z["T"]))


def _biases(slot: Slot) -> tuple[np.ndarray, np.ndarray]:
    N, M, T = slot.sizes["N"], math.prod(_few(slot.sizes)), slot.sizes["T"]
    return slot.rng.standard_normal((N, M, T)), slot.rng.standard_normal((N, T, M))


def _one_agent(q: Q, k: TokenK, v: TokenV) -> Out:
    read = attend(q.mean(1, keepdims=True), k, v)
    return jnp.broadcast_to(read, (*q.shape[:3], v.shape[-1]))


OPS = (
    Op(
        agent_attention,
        papers=(16,),
        reads="all",
        draw={
            "shape": square_grid,
            "agents": by_sizes(_few),
            "kernel": Draw(lambda slot: slot.normal("3 3 N D")),
            "biases": Draw(_biases),
        },
        limits=(
            Limit(
                "with one agent every token gets what it reads",
                {"agents": (1, 1), "biases": None, "kernel": None},
                _one_agent,
            ),
        ),
    ),
)
