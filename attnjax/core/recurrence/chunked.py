"""The recurrence of engine 2 by matrix products: C tokens at once, a state between chunks.

With c_i the sum of log decays from the first token of a chunk to token i, and S the state before,

    o_i = sum_{j <= i} (q_i . exp(c_i - c_j) k_j) u_j + q_i . exp(c_i) S
    S' = exp(c_C) S + sum_j exp(c_C - c_j) k_j u_j^T

u = v, or for the delta rule the solution of (I + L) u = beta (v - k . exp(c) S), where L_ij =
beta_i k_i . exp(c_i - c_j) k_j for j < i (the WY form; Yang et al. 2024, arXiv:2406.06484).  With r
and w to erase, w_j x_j^T is added beside k_j v_j^T, where (I + L) x = - r . exp(c') S - R v, L_ij =
r_i . exp(c'_i - c_j) w_j and R_ij the same of k_j for j < i, c' the sums up to the token before.

Only exponentials of numbers <= 0 are formed.  Documents are masks: a token sees those of its own,
and the state if none has started before it.  A backward pass computes each chunk again.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from attnjax.core.chunks import scan_chunks
from attnjax.core.numerics import known
from attnjax.core.recurrence.steps import RecurrenceRequest, Recurrent, Tokens, read
from attnjax.typing import Array

Cleaned = TypeVar("Cleaned")
Pairs = list[tuple[Array, Array]]  # keys (B,N,s,H) and values (B,N,s,D)

_LEAF = 4  # chunks of channel-wise decays are halved down to so many tokens
_WHOLE = 8  # a short run is a chunk of so many tokens, or twice, three times as many


class _Sums(NamedTuple):
    """Sums of log decays up to each token, (B,N,t,1|H): of their integer parts, and of the rest.

    Sums of integers are exact, so a difference of two sums is right however large both are: what a
    strong decay costs a token before it must not blur two tokens after it.
    """

    whole: Array
    rest: Array

    @property
    def total(self) -> Array:
        return self.whole + self.rest

    def between(self, earlier: "_Sums") -> Array:
        """The log decay from an earlier token to this one; broadcasts."""
        return (self.whole - earlier.whole) + (self.rest - earlier.rest)

    def at(self, *index: Any) -> "_Sums":
        return _Sums(self.whole[index], self.rest[index])

    def map(self, change: Callable[..., Array], *args: Any) -> "_Sums":
        """Both parts changed alike."""
        return _Sums(change(self.whole, *args), change(self.rest, *args))

    def before(self) -> "_Sums":
        """Those up to the token before each: none for the first."""
        moved = lambda x: jnp.pad(x[:, :, :-1], [(0, 0), (0, 0), (1, 0), (0, 0)])
        return self.map(moved)


_ALL = slice(None)


@dataclass(frozen=True)
class Chunked:
    """Matrix products within chunks of so many tokens, a scan over chunks; O(T) memory."""

    chunk: int = 64

    def supported(self, request: RecurrenceRequest) -> str | None:
        return None

    def run(self, request: RecurrenceRequest) -> tuple[Array, Array]:
        return _in_chunks(self.chunk, request)

    def state_after(self, request: RecurrenceRequest) -> Array:
        """The state after all tokens, without what their queries read."""
        return _state_in_chunks(self.chunk, request)


# Called eagerly, too, both compile once per shape.


@functools.partial(jax.jit, static_argnums=0)
def _in_chunks(chunk: int, request: RecurrenceRequest) -> tuple[Array, Array]:
    if (block := request.block) is None:
        memory = _state_in_chunks(chunk, request)
        q, spoiled = _cleaned(request.transposed(request.q))
        return (read(q, memory) + spoiled).swapaxes(1, 2), memory
    # a short run is one chunk of its own length, rounded up; blocks are never cut
    S, step = request.k.shape[1], block * request.writes
    size = min(chunk, -(-S // _WHOLE) * _WHOLE) if known(S) else chunk
    size = -(-size // step) * block

    @jax.checkpoint
    def over_chunk(memory: Array, chunk: tuple[Array, Tokens]) -> tuple[Array, Array]:
        q, tokens = request.transposed(chunk[0]), request.transposed_tokens(chunk[1])
        return _chunk(memory, q, tokens, block, request.writes)

    memory, out = scan_chunks(over_chunk, request.memory, request.cut_alike(), size)
    return out, memory


@functools.partial(jax.jit, static_argnums=0)
def _state_in_chunks(chunk: int, request: RecurrenceRequest) -> Array:
    if not request.erases:  # a sum: one product, whatever its length
        tokens, bad = _cleaned(request.transposed_tokens(request.tokens))
        c, documents = _sums(tokens.log_decay), _documents(tokens.starts)
        return _state_after(request.memory, [(tokens.k, tokens.v)], c, bad, documents)

    @jax.checkpoint
    def over_chunk(memory: Array, tokens: Tokens) -> tuple[Array, None]:
        tokens, bad = _cleaned(request.transposed_tokens(tokens))
        c, documents = _sums(tokens.log_decay), _documents(tokens.starts)
        memory, lost = documents.cleaned(memory)
        written = _written(memory, tokens, c, documents)
        return _state_after(memory, written, c, bad, documents) + documents.kept(lost), None

    return scan_chunks(over_chunk, request.memory, request.tokens, chunk)[0]


@dataclass(frozen=True)
class Parallel:
    """All tokens as one chunk: quadratic in T."""

    def supported(self, request: RecurrenceRequest) -> str | None:
        return None

    def run(self, request: RecurrenceRequest) -> tuple[Array, Array]:
        return Chunked(request.k.shape[1]).run(request)


def _chunk(memory: Array, q: Array, tokens: Tokens, block: int, writes: int) -> tuple[Array, Array]:
    """(state after the chunk, what its queries read (B,t,N,D))."""
    q, spoiled = _cleaned(q)
    tokens, bad = _cleaned(tokens)
    c, documents = _sums(tokens.log_decay), _documents(tokens.starts)
    memory, lost = documents.cleaned(memory)
    written = _written(memory, tokens, c, documents)
    # the token after which each query reads
    end = (np.arange(q.shape[2]) // block * block + block) * writes - 1
    at, readers = c, documents
    if block * writes != 1:
        at, readers = c if c is None else c.at(_ALL, _ALL, end), documents.at(end)
    seen = _Seen(end[:, None] >= np.arange(tokens.k.shape[2]), readers.share(documents), block)
    out = readers.read(q if at is None else _decayed(q, at.total), memory)
    for k, v in written:
        out = out + _products("BNts,BNsD->BNtD", _scores(q, k, at, c, seen), v)
    out = out + (spoiled + documents.spoiled(bad)[:, :, end] + readers.first(lost))
    after = _state_after(memory, written, c, bad, documents) + documents.kept(lost)
    return after, out.swapaxes(1, 2)


class _Documents(NamedTuple):
    """How many documents have started in the chunk up to each token, (B,N,t,1); None: it is one."""

    number: Array | None

    def at(self, index: Any) -> "_Documents":
        """Those of some tokens."""
        return self if self.number is None else _Documents(self.number[:, :, index])

    def share(self, others: "_Documents") -> Array | None:
        """The pairs (B,N,t,s) that are of one document, s among the others; None: all are."""
        if self.number is None or others.number is None:
            return None
        return self.number == others.number.swapaxes(2, 3)

    def cleaned(self, memory: Array) -> tuple[Array, Array]:
        """The state before the chunk, with zeros if it held a NaN, and then NaN, else zero.

        Where all read it nothing has to be kept from others: it stays as it is.
        """
        if self.number is None:
            return memory, jnp.zeros((1, 1, 1, 1), memory.dtype)
        lost = jnp.sum(0.0 * lax.stop_gradient(memory), axis=(2, 3), keepdims=True)
        return jnp.where(jnp.isnan(lost), 0.0, memory), lost

    def first(self, x: Array) -> Array:
        """x for the tokens of the document that began before the chunk, zero for others."""
        return x if self.number is None else jnp.where(self.number == 0, x, 0.0)

    def read(self, q: Array, memory: Array) -> Array:
        """What the state before the chunk says to the tokens of its document, zero to others."""
        return self.first(read(self.first(q), memory))

    def spoiled(self, bad: Array) -> Array:
        """NaN for tokens with one that is bad before them, else zero, (B,N,t,1)."""
        if self.number is None:
            return jnp.cumsum(bad, axis=2)
        before = (self.number == self.number.swapaxes(2, 3)) & np.tri(bad.shape[2], dtype=bool)
        count = _products("BNts,BNso->BNto", before.astype(bad.dtype), 1.0 * jnp.isnan(bad))
        return jnp.where(count > 0, jnp.nan, 0.0)

    def kept(self, memory: Array) -> Array:
        """The state before the chunk where its document goes on after it, else zero."""
        if self.number is None:
            return memory
        return jnp.where(self.number[:, :, -1:] == 0, memory, 0.0)

    def last(self, x: Array) -> Array:
        """x (B,N,t,.) of the tokens of the last document, zero for others."""
        if self.number is None:
            return x
        return jnp.where(self.number == self.number[:, :, -1:], x, 0.0)


def _documents(starts: Array | None) -> _Documents:
    return _Documents(None if starts is None else jnp.cumsum(lax.stop_gradient(starts), axis=2))


def _cleaned(tree: Cleaned) -> tuple[Cleaned, Array]:
    """Arrays with zeros for NaN and infinities, and (B,N,t,1): NaN where they were, else zero.

    In a product of a chunk, or of its derivative, 0 * NaN would spoil other tokens, too.
    """
    given = lax.stop_gradient(jax.tree.leaves(tree))
    bad = functools.reduce(jnp.add, (jnp.sum(0.0 * x, axis=-1, keepdims=True) for x in given))
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), tree), bad


def _state_after(
    memory: Array, written: Pairs, c: _Sums | None, bad: Array, documents: _Documents
) -> Array:
    """The state after tokens whose decays up to each of them are c; NaN after a bad one."""
    memory = documents.kept(memory)
    spoiled = jnp.sum(documents.last(bad), axis=2, keepdims=True)
    last = None if c is None else c.at(_ALL, _ALL, slice(-1, None))
    if last is not None:
        memory = jnp.exp(last.total[:, :, 0, :, None]) * memory
    for k, v in written:
        k = documents.last(k)
        k = k if last is None or c is None else _decayed(k, last.between(c))
        memory = memory + _products("BNsH,BNsD->BNHD", k, v)
    return memory + spoiled


def _written(memory: Array, tokens: Tokens, c: _Sums | None, documents: _Documents) -> Pairs:
    """What the tokens of a chunk add to the state, as products of keys and values."""
    k, v, _, beta, erase, _ = tokens
    if erase is not None:
        reading, along = erase
        at = None if c is None else c.before()
    elif beta is not None:
        reading, along, at, v = beta * k, None, c, beta * v
    else:
        return [(k, v)]
    earlier = _Seen(np.tri(k.shape[2], k=-1, dtype=bool), documents.share(documents))
    held = documents.read(reading if at is None else _decayed(reading, at.total), memory)
    if along is None:
        solved = inverse(_scores(reading, k, at, c, earlier))
        return [(k, _products("BNts,BNsD->BNtD", solved, v - held))]
    held = held + _products("BNts,BNsD->BNtD", _scores(reading, k, at, c, earlier), v)
    solved = inverse(_scores(reading, along, at, c, earlier))
    return [(k, v), (along, -_products("BNts,BNsD->BNtD", solved, held))]


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
    return _assembled(own[0], cross, own[1])


@inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    x = inverse(*primals)
    return x, -_matmul(x, _matmul(tangents[0], x))


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _sums(log_decay: Array | None) -> _Sums | None:
    if log_decay is None:
        return None
    whole = lax.stop_gradient(jnp.trunc(log_decay))
    return _Sums(jnp.cumsum(whole, axis=2), jnp.cumsum(log_decay - whole, axis=2))


def _decayed(x: Array, log_decay: Array) -> Array:
    return x * jnp.exp(log_decay)


def _products(spec: str, *xs: Array) -> Array:
    return jnp.einsum(spec, *xs, precision=lax.Precision.HIGHEST)


class _Seen(NamedTuple):
    """Which keys of a chunk each query has scores with."""

    order: np.ndarray  # (t,s): what comes before, the same in each block on the diagonal
    share: Array | None = None  # (B,N,t,s): what is of the same document; None: all
    block: int = 1

    @property
    def pairs(self) -> Any:
        return self.order if self.share is None else self.share & self.order


def _scores(q: Array, k: Array, at: _Sums | None, c: _Sums | None, seen: _Seen) -> Array:
    """sum_h q_ih exp(at_ih - c_jh) k_jh where seen, else 0: (B,N,t,H), (B,N,s,H) -> (B,N,t,s)."""
    if at is None or c is None:
        return jnp.where(seen.pairs, _products("BNtH,BNsH->BNts", q, k), 0.0)
    if c.rest.shape[-1] == 1:
        row = c.map(lambda x: x.swapaxes(2, 3))
        decay = jnp.exp(jnp.where(seen.pairs, at.between(row), -jnp.inf))
        return _products("BNtH,BNsH->BNts", q, k) * decay
    scores = _channel_scores(q, k, at, c, seen)
    return scores if seen.share is None else jnp.where(seen.share, scores, 0.0)


def _channel_scores(q: Array, k: Array, at: _Sums, c: _Sums, seen: _Seen) -> Array:
    """By halves: the late queries and early keys of a block in one product, each half by itself.

    The decays of a channel do not factor out of q.k safely, but over a point between key and query
    they do: exp(at_i - c_j) = exp(at_i - c_middle) exp(c_middle - c_j), both at most one.  In the
    smallest blocks every pair has exponentials of its own.
    """
    rows, columns, count = q.shape[2], k.shape[2], 1
    while rows % 2 == 0 and columns >= 2 * _LEAF and rows // 2 % seen.block == 0:
        rows, columns, count = rows // 2, columns // 2, 2 * count
    split = lambda x, *sizes: x.reshape(*x.shape[:-2], *sizes, x.shape[-1])
    gap = at.map(split, count, rows, 1).between(c.map(split, count, 1, columns))
    decay = jnp.exp(jnp.where(seen.order[:rows, :columns, None], gap, -jnp.inf))
    own = _products(
        "BNctH,BNcsH,BNctsH->BNcts", split(q, count, rows), split(k, count, columns), decay
    )
    while count > 1:
        count //= 2
        early = lambda x, size=columns, n=count: split(x, n, 2, size)[..., 0, :, :]
        late = lambda x, size=rows, n=count: split(x, n, 2, size)[..., 1, :, :]
        before = c.map(early)
        middle = before.at(..., slice(-1, None), _ALL)
        from_middle = _decayed(late(q), at.map(late).between(middle))
        to_middle = _decayed(early(k), middle.between(before))
        cross = _products("BNctH,BNcsH->BNcts", from_middle, to_middle)
        halves = own.reshape(*cross.shape[:-2], 2, rows, columns)
        own = _assembled(halves[..., 0, :, :], cross, halves[..., 1, :, :])
        rows, columns = 2 * rows, 2 * columns
    return own[..., 0, :, :]


def _assembled(first: Array, cross: Array, last: Array) -> Array:
    """[first, 0; cross, last]."""
    top = jnp.concatenate([first, jnp.zeros_like(cross)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([cross, last], axis=-1)], axis=-2)


@dataclass(frozen=True)
class Fastest:
    """On a CPU: token by token for values alone, in chunks where they are differentiated.

    Many small products run on one core there, where the recurrence is as fast; its derivative is
    not.
    """

    chunk: int = 64

    def supported(self, request: RecurrenceRequest) -> str | None:
        return None

    def run(self, request: RecurrenceRequest) -> tuple[Array, Array]:
        return _fastest(self.chunk, request)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fastest(chunk: int, request: RecurrenceRequest) -> tuple[Array, Array]:
    return Recurrent().run(request)


def _fastest_jvp(
    chunk: int, primals: tuple[RecurrenceRequest], tangents: tuple[RecurrenceRequest]
) -> tuple[Any, Any]:
    still = lambda x: isinstance(x, SymbolicZero)
    xs, tree = jax.tree.flatten(primals[0])
    dxs = jax.tree.leaves(tangents[0], is_leaf=still)
    moving = [i for i, dx in enumerate(dxs) if not still(dx)]

    def chunked(*moved: Array) -> tuple[Array, Array]:
        now = dict(zip(moving, moved, strict=True))
        request = jax.tree.unflatten(tree, [now.get(i, x) for i, x in enumerate(xs)])
        return Chunked(chunk).run(request)

    return jax.jvp(chunked, [xs[i] for i in moving], [dxs[i] for i in moving])


_fastest.defjvp(_fastest_jvp, symbolic_zeros=True)
