"""The recurrence of engine 2, token by token, and the call that its implementations receive.

    S_t = a_t S_{t-1} + k_t u_t^T,    o_t = q_t . S_t,    S (H,D)
    u_t = v_t, or with beta, the delta rule, beta_t (v_t - k_t . a_t S_{t-1})

An implementation runs a `Call` and gives what the queries read, (B,N,T,D), and the last state,
(B,N,H,D).
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.typing import Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["q", "k", "v", "log_decay", "beta", "memory"],
    meta_fields=["block", "dtype"],
)
@dataclass(frozen=True)
class Call:
    """Arguments of `linear_attend`, finite, in the working dtype, heads before tokens.

    q (B,N,T,H), k (B,N,S,H), v (B,N,S,D), beta (B,N,S,1) or None, memory (B,N,H,D)
    log_decay   (B,N,S,1), or (B,N,S,H) of each key channel; None for no decay
    block       queries read the state after the last token of their block of so many tokens;
                None: after all tokens
    dtype       that of the caller's q, k and v
    """

    q: Array
    k: Array
    v: Array
    log_decay: Array | None
    beta: Array | None
    memory: Array
    block: int | None
    dtype: jnp.dtype

    @property
    def tokens(self) -> tuple[Array, Array, Array | None, Array | None]:
        """What is written, token by token: arrays (B,N,S,...)."""
        return self.k, self.v, self.log_decay, self.beta


def write(memory: Array, k: Array, v: Array, log_decay: Array | None, beta: Array | None) -> Array:
    """The state after one token: k (B,N,H), v (B,N,D), log_decay (B,N,1|H), beta (B,N,1)."""
    if log_decay is not None:
        memory = jnp.exp(log_decay)[..., None] * memory
    if beta is not None:
        v = beta * (v - read(k[..., None, :], memory)[..., 0, :])
    return memory + k[..., None] * v[..., None, :]


def read(q: Array, memory: Array) -> Array:
    """q.S for queries of one state: (B,N,t,H), (B,N,H,D) -> (B,N,t,D)."""
    return jnp.einsum("BNtH,BNHD->BNtD", q, memory, precision=lax.Precision.HIGHEST)


def into_blocks(tree: Any, size: int) -> Any:
    """Each (B,N,S,...) as (blocks,B,N,size,...); zeros, which write nothing, fill the last one."""

    def cut(x: Array) -> Array:
        B, N, S, width = x.shape
        count = -(-S // size)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, count * size - S), (0, 0)))
        return jnp.moveaxis(x.reshape(B, N, count, size, width), 2, 0)

    return jax.tree.map(cut, tree)


def in_a_row(x: Array, length: int) -> Array:
    """(blocks,B,N,size,...) as (B,N,length,...): undoes `into_blocks`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, :length]


@dataclass(frozen=True)
class Recurrent:
    """One token after the other: the definition.  Its backward pass keeps every token's state."""

    def supported(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> tuple[Array, Array]:
        def all_written(memory: Array, tokens: tuple[Array | None, ...]) -> Array:
            each = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), tokens)
            return lax.scan(lambda m, token: (write(m, *token), None), memory, each)[0]

        def over_block(memory: Array, block: tuple) -> tuple[Array, Array]:
            q, *tokens = block
            memory = all_written(memory, tuple(tokens))
            return memory, read(q, memory)

        if call.block is None:
            memory = all_written(call.memory, call.tokens)
            return read(call.q, memory), memory
        blocks = into_blocks((call.q, *call.tokens), call.block)
        memory, out = lax.scan(over_block, call.memory, blocks)
        return in_a_row(out, call.q.shape[2]), memory
