"""Engine 2 on a GPU: the chunked form by Triton kernels, forward and backward."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from attnjax.core.derive import Static, in_reverse
from attnjax.core.numerics import repeat_heads
from attnjax.core.recurrence.chunked import Chunked
from attnjax.core.recurrence.steps import RecurrenceRequest
from attnjax.core.sharding import no_kernel, pvary_like
from attnjax.typing import Array

if TYPE_CHECKING:
    from attnjax.kernels.linear.triton import Sizes

Tree = TypeVar("Tree")
Decays = tuple[Array, Array] | None

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


@dataclass(frozen=True)
class Triton:
    """Chunks by kernels, a state between them; O(T) memory.

    chunk      tokens that are multiplied at once: a power of two from 16 on
    interpret  run in Triton's interpreter, on NumPy, anywhere: for tests

    Products are taken in the inputs' dtype with float32 sums, float32 ones without TF32; decays,
    states and sums are float32.  The backward pass computes states again: what is kept are the
    inputs, and for the delta rule what it solves in each chunk.  Results are bit-equal from run to
    run.  Forward mode and second derivatives are those of `Chunked`.
    """

    chunk: int = 64
    interpret: bool = False

    def __post_init__(self) -> None:
        if self.chunk < 16 or self.chunk & (self.chunk - 1):
            raise ValueError(f"Triton: chunk is {self.chunk}, expected a power of two from 16 on")

    def supported(self, request: RecurrenceRequest) -> str | None:
        """The first reason why the kernels do not apply, or None."""
        from attnjax.kernels import launch

        H, D = request.q.shape[-1], request.memory.shape[-1]
        if (reason := no_kernel()) is not None:
            return reason
        if request.memory.dtype != jnp.float32:
            return f"states of dtype {request.memory.dtype}: only float32"
        if any(x.dtype not in _DTYPES for x in (request.q, request.k, request.v)):
            return "only float32, bfloat16 and float16"
        if request.erase is not None:
            return "vectors of their own to erase: only the delta rule's"
        if request.writes != 1:
            return f"{request.writes} writes a token: only 1"
        if request.starts is not None:
            return "documents"
        if request.block != 1:
            return f"block {request.block}: only 1"
        if max(H, D) > 256:
            width = "" if D == request.v.shape[-1] else " with the denominator"
            return f"H = {H}, D = {D}{width}: only up to 256"
        return None if self.interpret else launch.missing()

    def run(self, request: RecurrenceRequest) -> tuple[Array, Array]:
        x = _Arguments(
            request.q, request.k, request.v, request.log_decay, request.beta, request.memory
        )
        none = dict.fromkeys(_FIELDS)
        return _attended(pvary_like(x, like=request), (Static(self), replace(request, **none)))

    def _by_kernels(self, request: RecurrenceRequest) -> tuple[Array, Array]:
        q, k, v, log_decay, beta, start = (getattr(request, name) for name in _FIELDS)
        q_poison, poison = _poison(q), _poison(k, v)
        poison = repeat_heads(poison, q)
        poison = jnp.cumsum(poison + _poison(log_decay, beta), axis=1)
        out_dtype = jnp.float32 if request.normalized else v.dtype
        dtype = jnp.result_type(q, k, v)
        if request.normalized:
            v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
        q, k, v = (x.astype(dtype) for x in (q, k, v))
        short = max(16, 1 << (q.shape[1] - 1).bit_length())  # a short run is one chunk
        config = _Config(min(self.chunk, short), self.interpret, jnp.dtype(out_dtype))
        decays = None if log_decay is None else _sums(config, _finite(log_decay))
        u, w = (v, None) if beta is None else _delta(config, k, v, decays, _finite(beta))
        walked: Any = _walked(config, _Inputs(q, k, u, w, decays, start, q_poison + poison))
        out, last = walked
        return out.astype(jnp.float32), last + poison[:, -1, :, :, None]


class _Arguments(NamedTuple):
    """What derivatives are taken by."""

    q: Array
    k: Array
    v: Array
    log_decay: Array | None
    beta: Array | None
    memory: Array


_FIELDS = _Arguments._fields
_Rest = tuple[Static, RecurrenceRequest]


def _joined(x: _Arguments, rest: _Rest) -> RecurrenceRequest:
    return replace(rest[1], **x._asdict())


def _by_kernels(x: _Arguments, rest: _Rest) -> tuple[Array, Array]:
    return rest[0].value._by_kernels(_joined(x, rest))


def _by_chunks(x: _Arguments, rest: _Rest) -> tuple[Array, Array]:
    return Chunked(rest[0].value.chunk).run(_joined(x, rest))


_attended = in_reverse(_by_kernels, _by_chunks)


class _Config(NamedTuple):
    chunk: int
    interpret: bool
    out_dtype: jnp.dtype


class _Inputs(NamedTuple):
    """What `kernels.linear.triton` explains."""

    q: Array
    k: Array
    u: Array
    w: Array | None
    decays: Decays
    start: Array
    bad: Array  # (B,T,N,1), added to the result


_HEADS: Any = _Inputs(2, 2, 2, 2, 2, 1, 2)  # type: ignore[arg-type]  # the axes of heads


def _sizes(config: _Config, q: Array, N: int, D: int) -> "Sizes":
    from attnjax.kernels.linear.triton import Sizes  # late: only GPUs need it

    (B, T), H = q.shape[:2], q.shape[3]
    return Sizes(B, T, N, H, D, config.chunk, config.interpret)


# ------------------------------------------------------------------ before the kernels, and after


def _poison(*xs: Array | None) -> Array:
    """(B,T,heads,1), float32: NaN where one of (B,T,heads,width) has NaN or infinities, else zero.

    The kernels take zeros in their place: in a product of a chunk, or of its derivative, 0 * NaN
    would spoil other tokens, too.
    """
    arrays = lax.stop_gradient([x for x in xs if x is not None])
    bad = (jnp.sum(0.0 * x, axis=-1, keepdims=True).astype(jnp.float32) for x in arrays)
    return functools.reduce(jnp.add, bad, jnp.zeros(()))


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0).astype(jnp.float32)


def _cut(config: _Config, x: Array, N: int) -> Array:
    """(B,T,heads,width) as (B,N,NC,C,width), zeros at the end."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % config.chunk), (0, 0), (0, 0)))
    B, _, heads, width = x.shape
    x = x.reshape(B, -1, config.chunk, heads, width).transpose(0, 3, 1, 2, 4)
    return jnp.repeat(x, N // heads, axis=1)


def _in_a_row(x: Array, T: int) -> Array:
    """(B,N,NC,C,width) as (B,T,N,width): undoes `_cut`."""
    B, N, _, _, width = x.shape
    return x.reshape(B, N, -1, width)[:, :, :T].swapaxes(1, 2)


def _sums(config: _Config, log_decay: Array) -> tuple[Array, Array]:
    """From the start of each chunk to each token: sums of integer parts, and of the rest.

    Sums of integers are exact, so a difference of two sums is right however large both are.
    """
    B, T, N, G = log_decay.shape
    x = jnp.pad(log_decay, ((0, 0), (0, -T % config.chunk), (0, 0), (0, 0)))
    x = x.reshape(B, -1, config.chunk, N, G)
    whole = lax.stop_gradient(jnp.trunc(x))
    sums = (jnp.cumsum(part, axis=2).reshape(B, -1, N, G) for part in (whole, x - whole))
    return tuple(sums)  # type: ignore[return-value]


def _delta(config: _Config, k: Array, v: Array, decays: Decays, beta: Array) -> tuple[Array, Array]:
    """(U (B,T,N,D), W (B,T,N,H)) of the delta rule: what it writes is U - W S.

    They solve (I + L) [U, W] = beta [v, exp(c) k], where L_ij = beta_i k_i . exp(c_i - c_j) k_j for
    j < i.
    """
    T, N = k.shape[1], beta.shape[2]
    strength = _cut(config, beta, N)
    erased: Any = _erased(config, (k, decays, beta))
    solved: Any = _inverse(config, strength * erased)
    solved = solved.astype(k.dtype)

    def solve(x: Array) -> Array:
        x = (strength * x).astype(k.dtype)
        x = jnp.matmul(
            solved, x, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )
        return _in_a_row(x, T).astype(k.dtype)

    decayed = _cut(config, _finite(k), N)
    if decays is not None:
        decayed = decayed * jnp.exp(_cut(config, decays[0] + decays[1], N))
    return solve(_cut(config, _finite(v), N)), solve(decayed)


# ------------------------------------------------------------------------- around the kernels


def _folding(config: _Config, f: Callable[..., Any], heads: Any, out_heads: Any, *args: Any) -> Any:
    """f(*args); under `jax.vmap` once, with the mapped axis folded into the first one of all.

    heads and out_heads are the axes of heads, as `over_devices` wants them.
    """
    from attnjax.kernels.partition import over_devices

    run = custom_vmap(over_devices(f, heads, out_heads, one=config.interpret))

    @run.def_vmap
    def _(size: int, mapped: Any, *args: Any) -> Any:
        def folded(x: Array, mapped: bool) -> Array:
            x = x if mapped else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        flat = jax.tree.map(folded, args, tuple(mapped))
        out = _folding(config, f, heads, out_heads, *flat)
        out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return pvary_like(run(*args), like=args)


def _grouped(dx: Array, like: Array) -> Array:
    """Gradients of N heads, summed over those that share a head of `like`."""
    B, T, heads, width = like.shape
    if dx.shape != like.shape:
        dx = dx.reshape(B, T, heads, -1, width).sum(3)
    return dx.astype(like.dtype)


def _of_decays(decays: Decays, dc: Array | None) -> Any:
    return None if decays is None else (jnp.zeros_like(decays[0]), dc)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _walked(config: _Config, x: _Inputs) -> tuple[Array, Array]:
    """(o (B,T,N,D), the last state)."""

    def run(x: _Inputs) -> tuple[Array, Array]:
        from attnjax.kernels.linear import triton as kernels

        z = _sizes(config, x.q, x.start.shape[1], x.start.shape[-1])
        before, last, u = kernels.states(z, x.k, x.u, x.w, x.decays, x.start)
        return kernels.outputs(z, x.q, x.k, u, x.decays, before, x.bad, config.out_dtype), last

    return _folding(config, run, (_HEADS,), (2, 1), x)


def _walked_forward(config: _Config, x: _Inputs) -> tuple[tuple[Array, Array], _Inputs]:
    return _walked(config, x), x


def _walked_backward(
    config: _Config, x: _Inputs, cotangents: tuple[Array, Array]
) -> tuple[_Inputs]:
    def run(x: _Inputs, do: Array, dlast: Array) -> _Inputs:
        from attnjax.kernels.linear import triton as kernels

        z = _sizes(config, x.q, x.start.shape[1], x.start.shape[-1])
        do = do.astype(x.q.dtype)
        d = kernels.back(z, x.q, x.k, x.u, x.w, x.decays, x.start, do, dlast)
        dk, du, still = _grouped(d.k, x.k), _grouped(d.u, x.u), jnp.zeros_like(x.bad)
        return _Inputs(d.q, dk, du, d.w, _of_decays(x.decays, d.decays), d.start, still)

    # Kept apart, or XLA would find these states in the forward pass, and keep them.
    kept = lax.optimization_barrier(x)
    return (_folding(config, run, (_HEADS, 2, 1), _HEADS, kept, *cotangents),)


_walked.defvjp(_walked_forward, _walked_backward)

_Keys = tuple[Array, Decays, Array]  # k, decays, and beta for its heads


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _erased(config: _Config, x: _Keys) -> Array:
    """k_i . exp(c_i - c_j) k_j for j < i, else 0: (B,N,NC,C,C), float32."""

    def run(k: Array, decays: Decays, beta: Array) -> Array:
        from attnjax.kernels.linear import triton as kernels

        return kernels.scores(_sizes(config, k, beta.shape[2], 1), k, k, decays, 1, jnp.float32)

    return _folding(config, run, (2, 2, 2), 1, *x)


def _erased_forward(config: _Config, x: _Keys) -> tuple[Array, _Keys]:
    return _erased(config, x), x


def _erased_backward(config: _Config, x: _Keys, dp: Array) -> tuple[_Keys]:
    def run(k: Array, decays: Decays, beta: Array, dp: Array) -> _Keys:
        from attnjax.kernels.linear import triton as kernels

        z = _sizes(config, k, beta.shape[2], 1)
        late, early, dc = kernels.scores_back(z, k, k, decays, 1, dp)
        late, early = late.astype(jnp.float32), early.astype(jnp.float32)
        return _grouped(late + early, k), _of_decays(decays, dc), jnp.zeros_like(beta)

    return (_folding(config, run, (2, 2, 2, 1), (2, 2, 2), *x, dp),)


_erased.defvjp(_erased_forward, _erased_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _inverse(config: _Config, lower: Array) -> Array:
    """(I + L)^-1 for strictly lower triangular L (B,N,NC,C,C)."""

    def run(lower: Array) -> Array:
        from attnjax.kernels.linear import triton as kernels

        B, N, NC, C, _ = lower.shape
        return kernels.inverse(kernels.Sizes(B, NC * C, N, 1, 1, C, config.interpret), lower)

    return _folding(config, run, (1,), 1, lower)


def _inverse_forward(config: _Config, lower: Array) -> tuple[Array, Array]:
    x: Any = _inverse(config, lower)
    return x, x


def _inverse_backward(config: _Config, x: Array, dx: Array) -> tuple[Array]:
    x = x.mT
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return (-product(x, product(dx, x)),)


_inverse.defvjp(_inverse_forward, _inverse_backward)
