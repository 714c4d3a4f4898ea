"""Any attention op as the `attention_fn` of Flax's MultiHeadAttention, NNX and linen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from attnjax.core import masks
from attnjax.probes import attention_map


def as_attention_fn(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Wraps `op(q, k, v, *, mask=...)` in the signature that Flax calls.

    Flax's boolean mask (B|1,N|1,T|1,S) and `is_causal` become a mask of ours, joined by `&`; `op`
    gets `mask=` only where Flax gives one, so an op's own default mask stays in force otherwise.
    q, k and v are cast to `dtype` when Flax gives one.  `precision` is applied to the whole op;
    `force_fp32_for_softmax` holds anyway.

    With `sow_weights=True` the weights (B,N,T,S) are sown as 'attention_weights', as Flax does.
    This needs an op that is linear in v.

    Raises ValueError for dropout that is switched on and for replaced einsums, since an op does
    neither, and for q, k, v whose batch is not one axis.
    """

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
        force_fp32_for_softmax: bool = True,
        qk_attn_weights_einsum: Callable[..., jax.Array] | None = None,
        attn_weights_value_einsum: Callable[..., jax.Array] | None = None,
    ) -> jax.Array:
        if dropout_rate > 0.0 and not deterministic:
            raise ValueError(
                f"dropout_rate: got {dropout_rate} with deterministic=False, expected 0 "
                "(attention ops have no dropout of weights)"
            )
        if qk_attn_weights_einsum or attn_weights_value_einsum:
            raise ValueError("einsum: got a replaced einsum, expected None (the op has its own)")
        if query.ndim != 4:
            raise ValueError(f"query: got shape {query.shape}, expected (B, T, N, H)")
        if dtype is not None:
            query, key, value = (x.astype(dtype) for x in (query, key, value))
        allowed = _as_mask(mask, is_causal, query.shape[1], key.shape[1])
        masked = op if allowed is None else lambda q, k, v: op(q, k, v, mask=allowed)
        with jax.default_matmul_precision(_name(precision)):
            if module is not None:
                _sow(module, attention_map(masked, query, key).astype(query.dtype))
            return masked(query, key, value)

    return attention_fn


def _as_mask(mask, is_causal, T, S):
    parts: list[masks.Mask] = [masks.causal] if is_causal else []
    if mask is not None:
        # Flax lets (B,1,1,S) stand for every query, and gives floats from its combine_masks.
        shape = (*mask.shape[:-2], T, S)
        parts.append(masks.array(jnp.broadcast_to(mask.astype(bool), shape)))
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1]


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
