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
from collections.abc import Sequence
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import mods
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.scan.convolution import depthwise
from attnjax.op import Draw, Limit, Op, Slot, by_sizes, grid, square_grid
from attnjax.ops.low_rank.linformer import mean_pool_projection, project_tokens
from attnjax.typing import Array, Float, Out, Q, TokenK, TokenV


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
    (B, T, N, _), S = q.shape, k.shape[1]
    if np.prod(shape) != T or (kernel is not None and S != T):
        raise ValueError(f"shape: {tuple(shape)}; expected T = {T} and S = {S} cells")
    if isinstance(agents, Sequence):
        if len(agents) != len(shape):
            raise ValueError(f"agents: {tuple(agents)}; expected one number for each of {shape}")
        pool = functools.reduce(jnp.kron, map(mean_pool_projection, shape, agents))
        agents = project_tokens("agents", pool, q, N)
    reading, telling = ((), ()) if biases is None else ((mods.pair_bias(b[None]),) for b in biases)
    read = attend(wide(agents), wide(k), wide(v), mods=reading, impl=impl)
    out = attend(wide(q), wide(agents), read, mods=telling, impl=impl)
    if kernel is not None:
        values = repeat_heads(v, q).reshape(B, *shape, -1)
        dwc = depthwise(values, kernel.reshape(*kernel.shape[:-2], -1))
        out = out + dwc.reshape(out.shape)
    return out.astype(q.dtype)


def place_bias(blocks: Float[Array, "N M ..."], *axes: Float[Array, "N M X"]) -> Array:
    """Biases (N,M,T) at (i,j): blocks(i,j), bilinear from (N,M,r,c), + rows[i] + columns[j]."""
    shape = tuple(x.shape[-1] for x in axes)
    total = jax.image.resize(wide(blocks), (*blocks.shape[:2], *shape), "linear", antialias=False)
    for a, x in enumerate(axes):
        total += jnp.expand_dims(wide(x), [2 + b for b in range(len(axes)) if b != a])
    return total.reshape(*blocks.shape[:2], -1)


def _biases(slot: Slot) -> tuple:
    sides = min(4, slot.sizes["T"]), slot.sizes["T"]
    return tuple(slot.rng.standard_normal((slot.sizes["N"], *x)) for x in permutations(sides))


OPS = (
    Op(
        agent_attention,
        papers=(16,),
        reads="all",
        draw={
            "shape": square_grid,
            "agents": by_sizes(lambda z: tuple(min(2, n) for n in grid(z["T"]))),
            "kernel": Draw(lambda slot: slot.normal("3 3 N D")),
            "biases": Draw(_biases),
        },
        limits=(
            Limit(
                "with one agent every token gets what it reads",
                {"agents": (1, 1), "biases": None, "kernel": None},
                lambda q, k, v: attend(q.mean(1, keepdims=True), k, v) + 0 * q,
            ),
        ),
    ),
)
