"""The recurrence of engine 2, token by token, and the request that its implementations receive.

    S_t = a_t S_{t-1} + k_t u_t^T,    o_t = q_t . S_t,    S (H,D)
    u_t = v_t, or with beta, the delta rule, beta_t (v_t - k_t . a_t S_{t-1})

and S_{t-1} = 0 for a token that starts a document.

An implementation runs a `RecurrenceRequest` and gives what the queries read, (B,T,N,D), and the
last state, (B,N,H,D), in the working dtype; both with the denominator as one more value where it is
kept.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.chunks import scan_chunks
from attnjax.typing import Array, Leaf

Gate = Array | None
Tokens = tuple[Array, Array, Gate, Gate, Gate]  # k, v, log_decay, beta, starts


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["q", "k", "v", "log_decay", "beta", "starts", "memory"],
    meta_fields=["block", "normalized"],
)
@dataclass(frozen=True)
class RecurrenceRequest:
    """Arguments of `linear_attend`, checked, as the caller gave them: tokens before heads.

    q (B,T,N,H), k (B,S,K,H), v (B,S,K,D), beta (B,S,N,1) or None
    starts      (B,S,1,1), one for tokens that start a document, zero for others, or None
    log_decay   (B,S,N,1), or (B,S,N,H) of each key channel; None for no decay
    memory      (B,N,H,D), the state to start from; (B,N,H,D+1) with normalized
    block       queries read the state after the last token of their block of so many tokens;
                None: after all tokens
    normalized  each key also writes the value 1: the last column of states and results is the
                denominator

    Everything but the memory is transposed block by block (`transposed`), while in the caches.
    """

    q: Leaf
    k: Leaf
    v: Leaf
    log_decay: Leaf | None
    beta: Leaf | None
    starts: Leaf | None
    memory: Leaf
    block: int | None
    normalized: bool

    @property
    def tokens(self) -> Tokens:
        """What is written, token by token: arrays (B,S,...)."""
        return self.k, self.v, self.log_decay, self.beta, self.starts

    def with_tokens(self, tokens: Iterable[Any]) -> "RecurrenceRequest":
        """The same call with other `tokens`."""
        k, v, log_decay, beta, starts = tokens
        return replace(self, k=k, v=v, log_decay=log_decay, beta=beta, starts=starts)

    def transposed(self, x: Array) -> Array:
        """One of the arrays, or a block (B,t,...) of it, as (B,N,t,...) in the working dtype."""
        N, heads = self.q.shape[2], x.shape[2]
        x = x.astype(self.memory.dtype).transpose(0, 2, 1, 3)
        return x if heads == N else jnp.repeat(x, N // heads, axis=1)

    def transposed_tokens(self, tokens: Tokens) -> Tokens:
        """A block of `tokens`, transposed; with ones in a last column of v for the denominator."""
        k, v, log_decay, beta, starts = jax.tree.map(self.transposed, tokens)
        if self.normalized:
            v = jnp.concatenate([v, jnp.ones((*v.shape[:3], 1), v.dtype)], axis=-1)
        return k, v, log_decay, beta, starts


def write(memory: Array, k: Array, v: Array, log_decay: Gate, beta: Gate, start: Gate) -> Array:
    """The state after one token: k (B,N,H), v (B,N,D), log_decay (B,N,1|H), beta, start (B,N,1)."""
    if start is not None:
        memory = jnp.where(start[..., None] > 0, 0.0, memory)
    if log_decay is not None:
        memory = jnp.exp(log_decay)[..., None] * memory
    if beta is not None:
        v = beta * (v - read(k[..., None, :], memory)[..., 0, :])
    return memory + k[..., None] * v[..., None, :]


def read(q: Array, memory: Array) -> Array:
    """q.S for queries of one state: (B,N,t,H), (B,N,H,D) -> (B,N,t,D)."""
    return jnp.einsum("BNtH,BNHD->BNtD", q, memory, precision=lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Recurrent:
    """One token after the other: the definition.  Its backward pass keeps every token's state."""

    def supported(self, request: RecurrenceRequest) -> str | None:
        return None

    def run(self, request: RecurrenceRequest) -> tuple[Array, Array]:
        return _token_by_token(request)


@jax.jit  # called eagerly, too, it compiles once per shape
def _token_by_token(request: RecurrenceRequest) -> tuple[Array, Array]:
    def over_tokens(memory: Array, tokens: Tokens) -> Array:
        each = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), request.transposed_tokens(tokens))
        return lax.scan(lambda m, token: (write(m, *token), None), memory, each)[0]

    def over_blocks(memory: Array, block: tuple[Array, Tokens]) -> tuple[Array, Array]:
        q, tokens = block
        memory = over_tokens(memory, tokens)
        return memory, read(request.transposed(q), memory).swapaxes(1, 2)

    if request.block is None:
        memory = over_tokens(request.memory, request.tokens)
        return read(request.transposed(request.q), memory).swapaxes(1, 2), memory
    tokens = request.q, request.tokens
    memory, out = scan_chunks(over_blocks, request.memory, tokens, request.block)
    return out, memory
