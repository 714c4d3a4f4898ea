"""A delta rule with momentum: two states, of which one drives the other.

    M_t = mu_t M_{t-1} + k_t u_t^T,    S_t = a_t S_{t-1} + b_t M_t,    o_t = q_t . S_t
    u_t = v_t - r_t . S_{t-1}

C tokens at once, by matrix products: with mu_tj and g_tj what a write of token j is worth in M_t
and S_t,

    mu_tj = mu_t mu_{t-1,j},    g_tj = a_t g_{t-1,j} + b_t mu_tj,    mu_jj = 1,  g_jj = b_j

u solves (I + L) u = v - r . (a_{t-1,0} S + g_{t-1,0} M), L_tj = g_{t-1,j} r_t . k_j for j < t.
All of these are sums of products of numbers >= 0; a document's first token has a = mu = r = 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.chunks import scan_chunks
from attnjax.core.numerics import einsum, wide
from attnjax.core.recurrence.chunked import inverse
from attnjax.core.scan.diagonal import linear_scan
from attnjax.core.sharding import on_any_mesh
from attnjax.typing import Array, Float


class Coupled(NamedTuple):
    """S, which is read, and M, which drives it."""

    memory: Float[Array, "B N H D"]
    momentum: Float[Array, "B N H D"]


class Writes(NamedTuple):
    """Of each token: arrays (B,T,N,...), numbers with a last axis of one."""

    q: Array
    k: Array
    v: Array
    r: Array  # reads the memory before the token
    log_a: Array  # <= 0
    log_mu: Array  # <= 0
    b: Array
    starts: Array  # one for the first token of a document, else zero


@on_any_mesh
def coupled_attend(
    tokens: Writes, state: Coupled | None = None, *, chunk: int = 64
) -> tuple[Float[Array, "B T N D"], Coupled]:
    """What the queries read, float32 (float64 for float64), and both states after the last token.

    O(T) memory: a backward pass computes each chunk of so many tokens again.  Tokens of zeros
    change nothing.  Raises ValueError for a chunk that is no positive integer.
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"coupled_attend: chunk is {chunk!r}, expected an integer of at least 1")
    tokens = Writes(*map(wide, tokens))
    B, T, N, H = tokens.k.shape
    if state is None:
        none = jnp.zeros((B, N, H, tokens.v.shape[-1]), tokens.v.dtype)
        state = Coupled(none, none)
    last, out = scan_chunks(jax.checkpoint(_chunk), state, tokens, min(chunk, max(T, 1)))
    return out, last


def _chunk(state: Coupled, tokens: Writes) -> tuple[Coupled, Float[Array, "B C N D"]]:
    q, k, v, r, log_a, log_mu, b, starts = (jnp.swapaxes(x, 1, 2) for x in tokens)
    a, mu, r = (1 - starts) * jnp.exp(log_a), (1 - starts) * jnp.exp(log_mu), (1 - starts) * r
    along = functools.partial(linear_scan, axis=2)
    nothing, one = jnp.zeros_like(a[:, :, 0]), jnp.ones_like(a[:, :, 0])
    # What is worth how much after each token: writes (B,N,C,C), and the states before (B,N,C,1).
    own = jnp.eye(k.shape[2], dtype=k.dtype)[None, None] + jnp.zeros_like(mu)
    in_momentum = along(mu, own, nothing)
    in_memory = along(a, b * in_momentum, nothing)
    of_momentum = along(mu, jnp.zeros_like(mu), one)
    of_memory = along(a, jnp.zeros_like(a), one)
    driven = along(a, b * of_momentum, nothing)
    earlier = lambda x, first: jnp.concatenate([first + 0 * x[:, :, :1], x[:, :, :-1]], axis=2)

    lower = earlier(in_memory, 0.0) * einsum("BNtH,BNsH->BNts", r, k)
    held = earlier(of_memory, 1.0) * _read(r, state.memory)
    held = held + earlier(driven, 0.0) * _read(r, state.momentum)
    u = einsum("BNts,BNsD->BNtD", inverse(lower), v - held)
    out = einsum("BNts,BNsD->BNtD", in_memory * einsum("BNtH,BNsH->BNts", q, k), u)
    out = out + of_memory * _read(q, state.memory) + driven * _read(q, state.momentum)

    last = lambda x: x[:, :, -1, :, None]
    written = lambda worth: einsum("BNsH,BNsD->BNHD", last(worth) * k, u)
    memory = last(of_memory) * state.memory + last(driven) * state.momentum + written(in_memory)
    momentum = last(of_momentum) * state.momentum + written(in_momentum)
    return Coupled(memory, momentum), jnp.swapaxes(out, 1, 2)


def _read(q: Array, memory: Array) -> Array:
    return einsum("BNtH,BNHD->BNtD", q, memory)
