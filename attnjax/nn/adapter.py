"""Any attention op as the `attention_fn` of Flax's MultiHeadAttention, NNX and linen."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from attnjax.core import masks
from attnjax.core.blocks.runs import mask_of_tokens
from attnjax.core.dropout import Dropout
from attnjax.core.masks import Mask
from attnjax.probes import attention_map


def as_attention_fn(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Wraps `op(q, k, v, *, mask=...)` in the signature that Flax calls.

    query (...,T,N,H), key (...,S,K,H), value (...,S,K,D) -> (...,T,N,D), with any leading axes.
    Flax's boolean mask, broadcastable to (...,N,T,S), and `is_causal` (top-left) join the mask
    that is the op's own default, or that a `functools.partial` gives it, by `&`; an op that has no
    `mask` raises where Flax gives one.  q, k and v are brought to `dtype`, or to their common one.
    `precision` is applied to the whole op; `force_fp32_for_softmax` holds anyway.

    Cached decoding: one query (T = 1) with a mask over several keys is a step of it.  The query
    stands where that mask allows its last key, over all examples and heads: windows, sinks and
    score modifications decode as they prefill.  An op with an argument `q_positions`, such as
    `attend`, is told so.  Any other op gets the query in each of S places, and the one that counts
    is taken: S times the work.  An op whose rows depend on other queries is refused: it is tried
    once, on random numbers.

    With `sow_weights=True` the weights (...,N,T,S) are sown as 'attention_weights', as Flax does:
    before any dropout, in q's dtype or with `force_fp32_for_softmax` in float32.  This needs an op
    that is linear in v.

    Dropout goes to an op that has an argument `dropout`, such as `attend`, which drops the same
    weights under every implementation; with `broadcast_dropout` in all examples and heads.

    Raises ValueError for shapes that do not fit, for an op that cannot decode so, for a
    dropout_rate outside [0, 1), for dropout that an op does not have or that comes without a
    dropout_rng, and for an einsum or dot_general that would replace the op's own.
    """
    signature = _Signature.of(op)

    def attention_fn(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        mask: jax.Array | None = None,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        broadcast_dropout: bool = True,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        is_causal: bool = False,
        force_fp32_for_softmax: bool = False,
        einsum_dot_general: Callable[..., jax.Array] | None = None,
        qk_attn_weights_einsum: Callable[..., jax.Array] | None = None,
        attn_weights_value_einsum: Callable[..., jax.Array] | None = None,
    ) -> jax.Array:
        _refuse_einsums(einsum_dot_general, qk_attn_weights_einsum, attn_weights_value_einsum)
        _check_shapes(query, key, value)
        dropout = _dropout(dropout_rate, deterministic, dropout_rng, broadcast_dropout)
        dtype = jnp.result_type(query, key, value) if dtype is None else dtype
        lead = query.shape[:-3]
        q, k, v = (
            jnp.asarray(x, dtype).reshape(math.prod(lead), *x.shape[-3:])
            for x in (query, key, value)
        )
        given = None if mask is None else _one_batch_axis(jnp.asarray(mask), lead, q, k)
        run = signature.caller(given, is_causal, q, k)
        back = lambda x: x.reshape(*lead, *x.shape[1:])
        with jax.default_matmul_precision(_name(precision)):
            if module is not None:
                wide = jnp.float32 if force_fp32_for_softmax else dtype
                weights = attention_map(run, q.astype(wide), k.astype(wide))
                _sow(module, back(weights.astype(wide)))
            return back(run(q, k, v, **signature.with_dropout(dropout)))

    return attention_fn


# --------------------------------------------------------------------- how the op is to be called


@dataclass(frozen=True)
class _Signature:
    """An op, and what its signature says of masks and positions.

    own        the mask that it has by default
    required   whether it has none, but has to be given one
    takes      the names of its arguments; None: any
    """

    op: Callable[..., jax.Array]
    own: Mask
    required: bool
    takes: frozenset[str] | None
    placed: bool  # whether it takes positions of queries, and has been given none

    @classmethod
    def of(cls, op: Callable[..., jax.Array]) -> "_Signature":
        parameters = inspect.signature(op).parameters
        every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        default = lambda name: parameters[name].default if name in parameters else None
        own = default("mask")
        required = own is inspect.Parameter.empty
        if not (required or own is None or isinstance(own, Mask)):
            raise TypeError(
                f"as_attention_fn: the op's mask is {type(own).__name__} by default, expected a "
                "Mask; an array is masks.array(x)"
            )
        placed = "q_positions" in parameters and default("q_positions") is None
        return cls(
            op,
            own if isinstance(own, Mask) else masks.everything,
            required,
            None if every else frozenset(parameters),
            placed,
        )

    def caller(
        self, given: jax.Array | None, is_causal: bool, q: jax.Array, k: jax.Array
    ) -> Callable[..., jax.Array]:
        """(q, k, v) -> out under the masks; `given` is Flax's, (B|1,N|1,T|1,S)."""
        T, S = q.shape[1], k.shape[1]
        joined = masks.causal if is_causal else masks.everything
        if given is not None:
            joined = joined & masks.array(given)
        if given is None or not T == 1 < S:
            return self._with(joined)
        at = _last_allowed(given)
        if self.placed:
            own = mask_of_tokens(self.own, S, S)  # resolved for S queries, of which one is here
            place = {"q_positions": at[None]}
            return lambda q, k, v, **more: self._call(own & joined, q, k, v, **place, **more)
        whole = self._with(joined)
        if not _rows_stand_alone(self, k.shape[1], *q.shape[2:], k.shape[2]):
            raise ValueError(
                f"decode: rows of {self._name} depend on other queries, which a step of Flax's "
                "decoding has not; expected an op whose rows stand alone"
            )

        def step(q: jax.Array, k: jax.Array, v: jax.Array, **more: Any) -> jax.Array:
            everywhere = jnp.broadcast_to(q, (q.shape[0], S, *q.shape[2:]))
            return jax.lax.dynamic_slice_in_dim(whole(everywhere, k, v, **more), at, 1, 1)

        return step

    @property
    def alone(self) -> Callable[..., jax.Array]:
        """The op as it is without Flax's mask."""
        return self._with(masks.everything)

    def _with(self, joined: Mask) -> Callable[..., jax.Array]:
        """The op under its own mask and one more."""
        if isinstance(joined, masks.Everything) and not self.required:
            return self.op
        return lambda q, k, v, **more: self._call(self.own & joined, q, k, v, **more)

    def with_dropout(self, dropout: Dropout | None) -> dict[str, Any]:
        """The argument of the op, if there is dropout."""
        if dropout is None:
            return {}
        if self.takes is not None and "dropout" not in self.takes:
            raise ValueError(
                f"dropout_rate: got {dropout.rate} with deterministic=False, but "
                f"{self._name} has no argument dropout, expected 0"
            )
        return {"dropout": dropout}

    @property
    def _name(self) -> str:
        inner = self.op.func if isinstance(self.op, functools.partial) else self.op
        return getattr(inner, "__name__", repr(inner))

    def _call(self, mask: Mask, *qkv: jax.Array, **more: Any) -> jax.Array:
        if self.takes is not None and "mask" not in self.takes:
            raise ValueError(
                f"mask: {self._name} has no such argument, expected no mask and is_causal=False "
                "from Flax"
            )
        return self.op(*qkv, mask=mask, **more)


@functools.lru_cache(maxsize=64)
def _rows_stand_alone(signature: _Signature, S: int, N: int, H: int, K: int) -> bool:
    """Whether the last query reads the same, whatever the queries before it are."""
    op, draw = signature.alone, np.random.default_rng(0)
    q, k, v = (draw.normal(size=(1, S, n, H)).astype(np.float32) for n in (N, K, K))
    with jax.ensure_compile_time_eval():
        alone = op(jnp.asarray(np.broadcast_to(q[:, -1:], q.shape)), jnp.asarray(k), jnp.asarray(v))
        among = op(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v))
        return np.allclose(alone[:, -1], among[:, -1], rtol=1e-3, atol=1e-3)


def _last_allowed(given: jax.Array) -> jax.Array:
    """The last key that any example and head allows: where the query of a decoding step stands."""
    some = given.any(axis=(0, 1, 2))
    return (jnp.arange(given.shape[-1], dtype=jnp.int32) * some).max()


def _one_batch_axis(
    mask: jax.Array, lead: tuple[int, ...], q: jax.Array, k: jax.Array
) -> jax.Array:
    """A mask broadcastable to (...,N,T,S) as (B|1,N|1,T|1,S), boolean."""
    full = (*lead, q.shape[2], q.shape[1], k.shape[1])
    fits = mask.ndim <= len(full) and all(
        a in (1, b) for a, b in zip(mask.shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"mask: got shape {mask.shape}, expected one broadcastable to (...,N,T,S) = {full}"
        )
    mask = mask.reshape((1,) * (len(full) - mask.ndim) + mask.shape)
    ours = mask.shape[: len(lead)]
    if math.prod(ours) > 1:
        ours = lead
    mask = jnp.broadcast_to(mask, (*ours, *mask.shape[-3:-1], k.shape[1]))
    # Flax gives floats from its combine_masks.
    return mask.reshape(math.prod(ours), *mask.shape[-3:]).astype(bool)


# -------------------------------------------------------------------- checks, in Flax's words


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    """Raises ValueError where the letters of (...,T,N,H), (...,S,K,H), (...,S,K,D) disagree."""
    shapes = query.shape, key.shape, value.shape
    told = f"got query, key, value of shapes {', '.join(map(str, shapes))}"
    if len({len(s) for s in shapes}) > 1 or len(shapes[0]) < 3:
        raise ValueError(f"q, k, v must have the same rank, 3 at least, (...,T,N,H): {told}")
    if len({s[:-3] for s in shapes}) > 1:
        raise ValueError(f"q, k, v batch dims must match: {told}")
    if key.shape[-3] != value.shape[-3]:
        raise ValueError(f"k, v lengths must match, S: {told}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"q, k depths must match, H: {told}")
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(f"the number of query heads N must be a multiple of the keys' K: {told}")


def _dropout(rate: float, deterministic: bool, rng: Any, broadcast: bool) -> Dropout | None:
    """What Flax's arguments say; its `broadcast` is one key for all examples and heads."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout_rate: got {rate}, expected a number in [0, 1)")
    if deterministic or rate == 0.0:
        return None
    if rng is None:
        raise ValueError(f"dropout_rng: got None with dropout_rate {rate}, expected a key")
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    return Dropout(float(rate), rng.reshape(1, 1) if broadcast else rng)


def _refuse_einsums(dot_general: Any, *einsums: Any) -> None:
    if any(einsums):
        raise ValueError("einsum: got a replaced einsum, expected None (the op has its own)")
    if dot_general not in (None, jax.lax.dot_general):
        raise ValueError(
            f"einsum_dot_general: got {dot_general!r}, expected None or jax.lax.dot_general "
            "(the op has its own products)"
        )


def _name(precision):
    # A pair of precisions, one for each operand, is more than the context manager can say.
    if isinstance(precision, jax.lax.Precision):
        return precision.name.lower()
    if precision is None or isinstance(precision, str):
        return precision
    raise ValueError(f"precision: got {precision!r}, expected None, a name or a lax.Precision")


def _sow(module, weights):
    if isinstance(module, linen.Module):
        module.sow("intermediates", "attention_weights", weights)
    else:
        module.sow(nnx.Intermediate, "attention_weights", weights)
