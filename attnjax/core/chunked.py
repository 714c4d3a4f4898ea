"""The recurrence of engine 2 by matrix products: C tokens at once, a state between chunks.

With c_i the sum of log decays from the first token of a chunk to token i, and S the state before,

    o_i = sum_{j <= i} (q_i . exp(c_i - c_j) k_j) u_j + q_i . exp(c_i) S
    S' = exp(c_C) S + sum_j exp(c_C - c_j) k_j u_j^T

u = v, or for the delta rule the solution of (I + L) u = beta (v - k . exp(c) S), where L_ij =
beta_i k_i . exp(c_i - c_j) k_j for j < i (the WY form; Yang et al. 2024, arXiv:2406.06484).  Only
exponentials of numbers <= 0 are formed.  A backward pass computes each chunk again.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core.recurrent import Call, in_a_row, into_blocks, read
from attnjax.typing import Array

_LEAF = 8  # chunks of channel-wise decays are halved down to so many tokens


@dataclass(frozen=True)
class Chunked:
    """Matrix products within chunks of so many tokens, a scan over chunks; O(T) memory."""

    chunk: int = 64

    def supported(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> tuple[Array, Array]:
        if call.block is None:
            return _both_directions(call, self.chunk)
        size = -(-self.chunk // call.block) * call.block

        @jax.checkpoint
        def over_chunk(memory: Array, chunk: tuple) -> tuple[Array, Array]:
            q, *tokens = chunk
            return _chunk(memory, q, *tokens, block=call.block)

        chunks = into_blocks((call.q, *call.tokens), size)
        memory, out = lax.scan(over_chunk, call.memory, chunks)
        return in_a_row(out, call.q.shape[2]), memory


@dataclass(frozen=True)
class Parallel:
    """All tokens as one chunk: quadratic in T."""

    def supported(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> tuple[Array, Array]:
        return Chunked(call.k.shape[2]).run(call)


def _both_directions(call: Call, size: int) -> tuple[Array, Array]:
    if call.beta is None:  # a sum: one product, whatever its length
        memory = _written(call.memory, call.k, call.v, _sums(call.log_decay))
    else:

        @jax.checkpoint
        def over_chunk(memory: Array, tokens: tuple) -> tuple[Array, None]:
            k, v, log_decay, beta = tokens
            c = _sums(log_decay)
            return _written(memory, k, _corrected(memory, k, v, c, beta), c), None

        memory, _ = lax.scan(over_chunk, call.memory, into_blocks(call.tokens, size))
    return read(call.q, memory), memory


def _chunk(
    memory: Array, q: Array, k: Array, v: Array, log_decay: Array | None, beta: Array | None,
    block: int,
) -> tuple[Array, Array]:  # fmt: skip
    """(state after the chunk, what its queries read)."""
    c = _sums(log_decay)
    v = _corrected(memory, k, v, c, beta)
    end = np.arange(q.shape[2]) // block * block + block - 1  # where each query reads
    at = None if c is None else c if block == 1 else c[:, :, end]
    seen = end[:, None] >= np.arange(q.shape[2])
    out = _products("BNts,BNsD->BNtD", _scores(q, k, at, c, seen, block), v)
    return _written(memory, k, v, c), out + read(_faded(q, at), memory)


def _written(memory: Array, k: Array, v: Array, c: Array | None) -> Array:
    """The state after tokens whose decays up to each of them are c."""
    if c is None:
        return memory + _products("BNsH,BNsD->BNHD", k, v)
    last = c[:, :, -1:]
    kept = jnp.exp(last[:, :, 0, :, None]) * memory
    return kept + _products("BNsH,BNsD->BNHD", _faded(k, last - c), v)


def _corrected(memory: Array, k: Array, v: Array, c: Array | None, beta: Array | None) -> Array:
    """u: the values that the delta rule writes; v where there is no beta."""
    if beta is None:
        return v
    before = np.tri(k.shape[2], k=-1, dtype=bool)
    erased = beta * _scores(k, k, c, c, before, 1)
    wanted = beta * (v - read(_faded(k, c), memory))
    return lax.linalg.triangular_solve(
        erased, wanted, left_side=True, lower=True, unit_diagonal=True
    )


def _sums(log_decay: Array | None) -> Array | None:
    return None if log_decay is None else jnp.cumsum(log_decay, axis=2)


def _faded(x: Array, c: Array | None) -> Array:
    return x if c is None else x * jnp.exp(c)


def _products(spec: str, *xs: Array) -> Array:
    return jnp.einsum(spec, *xs, precision=lax.Precision.HIGHEST)


def _scores(
    q: Array, k: Array, at: Array | None, c: Array | None, seen: np.ndarray, block: int
) -> Array:
    """sum_h q_ih exp(at_ih - c_jh) k_jh where seen, else 0: (B,N,t,H), (B,N,s,H) -> (B,N,t,s)."""
    if at is None or c is None or c.shape[-1] == 1:
        s = _products("BNtH,BNsH->BNts", q, k)
        if at is None or c is None:
            return jnp.where(seen, s, 0.0)
        gap = at - jnp.swapaxes(c, 2, 3)
        return s * jnp.exp(jnp.where(seen, gap, -jnp.inf))
    half, odd = divmod(q.shape[2], 2)
    if odd or half < _LEAF or half % block:
        gap = jnp.where(seen[..., None], at[:, :, :, None] - c[:, :, None], -jnp.inf)
        return jnp.einsum("BNtH,BNsH,BNtsH->BNts", q, k, jnp.exp(gap))
    # The decays of a channel do not factor out of q.k safely, but over a point between key and
    # query they do: late queries and early keys through the middle, each half by itself.
    halves = lambda x: x.reshape(*x.shape[:2], 2, half, x.shape[-1]).swapaxes(1, 2)
    fold = lambda x: halves(x).reshape(-1, x.shape[1], half, x.shape[-1])
    own = _scores(fold(q), fold(k), fold(at), fold(c), seen[:half, :half], block)
    own = own.reshape(q.shape[0], 2, q.shape[1], half, half)
    middle = c[:, :, half - 1 : half]
    late = _faded(q[:, :, half:], at[:, :, half:] - middle)
    early = _faded(k[:, :, :half], middle - c[:, :, :half])
    cross = jnp.where(seen[half:, :half], _products("BNtH,BNsH->BNts", late, early), 0.0)
    top = jnp.concatenate([own[:, 0], jnp.zeros_like(cross)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([cross, own[:, 1]], axis=-1)], axis=-2)
