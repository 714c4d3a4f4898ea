"""The recurrence of engine 2, token by token, and the request that its implementations receive.

    S_t = a_t S_{t-1} + k_t u_t^T,    o_t = q_t . S_t,    S (H,D)
    u_t = v_t, or with beta, the delta rule, beta_t (v_t - k_t . a_t S_{t-1})

With vectors of its own to erase, r_t to read and w_t to take off along, a transition is diagonal
plus low rank:

    S_t = a_t S_{t-1} - w_t (r_t . S_{t-1})^T + k_t v_t^T

The delta rule is r = beta a k, w = k, and beta v for v.  S_{t-1} = 0 for a token that starts a
document.

An implementation runs a `RecurrenceRequest` and gives what the queries read, (B,T,N,D), and the
last state, (B,N,H,D), in the working dtype; both with the denominator as one more value where it is
kept.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.chunks import scan_chunks
from attnjax.typing import Array, Leaf

Gate = Array | None
Erase = tuple[Array, Gate] | None  # what reads, what is taken off along; None: k


class Tokens(NamedTuple):
    """What is written, token by token: arrays (B,S,heads,width), as `RecurrenceRequest` has them.

    In chunks of queries that write several times each it is (B,T,writes,heads,width).
    """

    k: Array
    v: Array
    log_decay: Gate
    beta: Gate
    erase: Erase
    starts: Gate


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["q", "k", "v", "log_decay", "beta", "erase", "starts", "memory"],
    meta_fields=["block", "normalized", "writes"],
)
@dataclass(frozen=True)
class RecurrenceRequest:
    """Arguments of `linear_attend`, checked, as the caller gave them: tokens before heads.

    q (B,T,N,H), k (B,S,K,H), v (B,S,K,D), beta (B,S,N,1) or None
    erase       (r, w) or (r, None), each (B,S,K,H) or (B,S,N,H); None if nothing is erased but by
                the delta rule.  Without w it is k
    starts      (B,S,1,1), one for tokens that start a document, zero for others, or None
    log_decay   (B,S,N,1), or (B,S,N,H) of each key channel; None for no decay
    memory      (B,N,H,D), the state to start from; (B,N,H,D+1) with normalized
    block       queries read the state after the last token of their block of so many tokens;
                None: after all tokens
    normalized  each key also writes the value 1: the last column of states and results is the
                denominator
    writes      tokens of S that each of T is made of: where block is a number, S = writes T, and
                queries and blocks are counted in T

    Everything but the memory is transposed block by block (`transposed`), while in the caches.
    """

    q: Leaf
    k: Leaf
    v: Leaf
    log_decay: Leaf | None
    beta: Leaf | None
    erase: tuple[Leaf, Leaf | None] | None
    starts: Leaf | None
    memory: Leaf
    block: int | None
    normalized: bool
    writes: int = 1

    @property
    def tokens(self) -> Tokens:
        """What is written, token by token."""
        return Tokens(self.k, self.v, self.log_decay, self.beta, self.erase, self.starts)

    @property
    def erases(self) -> bool:
        """Whether a transition is a matrix: what is written depends on the state."""
        return self.beta is not None or self.erase is not None

    def with_tokens(self, tokens: Iterable[Any]) -> "RecurrenceRequest":
        """The same call with other `tokens`."""
        return replace(self, **Tokens(*tokens)._asdict())

    def cut_alike(self) -> tuple[Array, Tokens]:
        """q (B,T,...) and tokens (B,T,...), or (B,T,writes,...): a query stays with its writes."""
        if (n := self.writes) == 1:
            return self.q, self.tokens
        split = lambda x: x.reshape(x.shape[0], x.shape[1] // n, n, *x.shape[2:])
        return self.q, jax.tree.map(split, self.tokens)

    def transposed(self, x: Array) -> Array:
        """One of the arrays, or a block (B,t,...) of it, as (B,N,t,...) in the working dtype."""
        if x.ndim == 5:
            x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
        N, heads = self.q.shape[2], x.shape[2]
        x = x.astype(self.memory.dtype).transpose(0, 2, 1, 3)
        return x if heads == N else jnp.repeat(x, N // heads, axis=1)

    def transposed_tokens(self, tokens: Tokens) -> Tokens:
        """A block of `tokens`, transposed; with ones in a last column of v for the denominator."""
        tokens = jax.tree.map(self.transposed, tokens)
        if not self.normalized:
            return tokens
        ones = jnp.ones((*tokens.v.shape[:3], 1), tokens.v.dtype)
        return tokens._replace(v=jnp.concatenate([tokens.v, ones], axis=-1))


def write(memory: Array, token: Tokens) -> Array:
    """The state after one token: k (B,N,H), v (B,N,D), log_decay (B,N,1|H), beta, start (B,N,1)."""
    k, v, log_decay, beta, erase, start = token
    if start is not None:
        memory = jnp.where(start[..., None] > 0, 0.0, memory)
    held = None if erase is None else read(erase[0][..., None, :], memory)[..., 0, :]
    if log_decay is not None:
        memory = jnp.exp(log_decay)[..., None] * memory
    if beta is not None:
        v = beta * (v - read(k[..., None, :], memory)[..., 0, :])
    if erase is not None and held is not None:
        along = k if erase[1] is None else erase[1]
        memory = memory - along[..., None] * held[..., None, :]
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
        return lax.scan(lambda m, token: (write(m, token), None), memory, each)[0]

    def over_blocks(memory: Array, block: tuple[Array, Tokens]) -> tuple[Array, Array]:
        q, tokens = block
        memory = over_tokens(memory, tokens)
        return memory, read(request.transposed(q), memory).swapaxes(1, 2)

    if request.block is None:
        memory = over_tokens(request.memory, request.tokens)
        return read(request.transposed(request.q), memory).swapaxes(1, 2), memory
    memory, out = scan_chunks(over_blocks, request.memory, request.cut_alike(), request.block)
    return out, memory
