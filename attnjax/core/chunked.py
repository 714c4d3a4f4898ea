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

from attnjax.core.recurrent import Call, Tokens, in_a_row, into_blocks, read
from attnjax.typing import Array

_LEAF = 8  # chunks of channel-wise decays are halved down to so many tokens


@dataclass(frozen=True)
class Chunked:
    """Matrix products within chunks of so many tokens, a scan over chunks; O(T) memory."""

    chunk: int = 64

    def supported(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> tuple[Array, Array]:
        if (block := call.block) is None:
            memory = self._all_written(call)
            return read(call.laid_out(call.q), memory).swapaxes(1, 2), memory
        size = -(-self.chunk // block) * block

        @jax.checkpoint
        def over_chunk(memory: Array, chunk: tuple[Array, Tokens]) -> tuple[Array, Array]:
            q, tokens = chunk
            return _chunk(memory, call.laid_out(q), call.written(tokens), block)

        chunks = into_blocks((call.q, call.tokens), size)
        memory, out = lax.scan(over_chunk, call.memory, chunks)
        return in_a_row(out, call.q.shape[1]), memory

    def _all_written(self, call: Call) -> Array:
        if call.beta is None:  # a sum: one product, whatever its length
            (k, v, log_decay, _), bad = _cleaned(call.written(call.tokens))
            return _written(call.memory, k, v, _sums(log_decay)) + _total(bad)

        @jax.checkpoint
        def over_chunk(memory: Array, tokens: Tokens) -> tuple[Array, None]:
            (k, v, log_decay, beta), bad = _cleaned(call.written(tokens))
            c = _sums(log_decay)
            v = _corrected(memory, k, v, c, beta)
            return _written(memory, k, v, c) + _total(bad), None

        return lax.scan(over_chunk, call.memory, into_blocks(call.tokens, self.chunk))[0]


@dataclass(frozen=True)
class Parallel:
    """All tokens as one chunk: quadratic in T."""

    def supported(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> tuple[Array, Array]:
        return Chunked(call.k.shape[1]).run(call)


def _chunk(memory: Array, q: Array, tokens: Tokens, block: int) -> tuple[Array, Array]:
    """(state after the chunk, what its queries read (B,t,N,D))."""
    (k, v, log_decay, beta), bad = _cleaned(tokens)
    c = _sums(log_decay)
    v = _corrected(memory, k, v, c, beta)
    end = np.arange(q.shape[2]) // block * block + block - 1  # where each query reads
    at = None if c is None else c if block == 1 else c[:, :, end]
    seen = end[:, None] >= np.arange(q.shape[2])
    out = _products("BNts,BNsD->BNtD", _scores(q, k, at, c, seen, block), v)
    out = out + read(_faded(q, at), memory) + jnp.cumsum(bad, axis=2)[:, :, end]
    return _written(memory, k, v, c) + _total(bad), out.swapaxes(1, 2)


def _cleaned(tokens: Tokens) -> tuple[Tokens, Array]:
    """Tokens with zeros for NaN and infinities, and (B,N,t,1): NaN where they were, else zero.

    In a product of a chunk 0 * NaN would spoil earlier tokens, too.
    """
    given = [lax.stop_gradient(x) for x in tokens if x is not None]
    bad = sum(jnp.sum(0.0 * x, axis=-1, keepdims=True) for x in given)
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), tokens), bad


def _total(bad: Array) -> Array:
    """NaN for states (B,N,1,1) after a bad token, else zero."""
    return jnp.sum(bad, axis=2, keepdims=True)


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
    return _products("BNts,BNsD->BNtD", inverse(erased), wanted)


@jax.custom_jvp
def inverse(lower: Array) -> Array:
    """(I + L)^-1 for strictly lower triangular L (...,C,C), by halves: products, not C steps.

    [I + A,    0]^-1   [      X,  0]
    [   B, I + D]    = [-Y B X,  Y],    X = (I + A)^-1,  Y = (I + D)^-1
    """
    C = lower.shape[-1]
    if C == 1:
        return jnp.ones_like(lower)
    half = (C + 1) // 2
    if C % 2:  # a row and a column of zeros change nothing
        pad = [(0, 0)] * (lower.ndim - 2) + [(0, 1), (0, 1)]
        return inverse(jnp.pad(lower, pad))[..., :C, :C]
    own = inverse(jnp.stack([lower[..., :half, :half], lower[..., half:, half:]]))
    cross = -_matmul(own[1], _matmul(lower[..., half:, :half], own[0]))
    return _assembled(own, cross)


@inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    x = inverse(*primals)
    return x, -_matmul(x, _matmul(tangents[0], x))


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


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
    fold = lambda x: jnp.concatenate([x[:, :, :half], x[:, :, half:]])
    own = _scores(fold(q), fold(k), fold(at), fold(c), seen[:half, :half], block)
    own = own.reshape(2, *q.shape[:2], half, half)
    middle = c[:, :, half - 1 : half]
    late = _faded(q[:, :, half:], at[:, :, half:] - middle)
    early = _faded(k[:, :, :half], middle - c[:, :, :half])
    cross = jnp.where(seen[half:, :half], _products("BNtH,BNsH->BNts", late, early), 0.0)
    return _assembled(own, cross)


def _assembled(own: Array, cross: Array) -> Array:
    """[own_0, 0; cross, own_1]."""
    top = jnp.concatenate([own[0], jnp.zeros_like(cross)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([cross, own[1]], axis=-1)], axis=-2)
