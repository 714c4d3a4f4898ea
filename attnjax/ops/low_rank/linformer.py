"""Linformer: softmax attention to R mixtures of the keys and values in place of S of them.

    K' = E K,  V' = F V,    E and F (R,S), learned for S up to a maximum,
    out_i = sum_r softmax_r(q_i . k'_r / sqrt(H)) v'_r                      time O((T + S) R)

Paper: Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, arXiv:2006.04768,
equation 7 and section 4.
Limits: R = S with E = F = 1 is softmax attention.
Differs: nothing in the formula; each of the R mixtures holds all keys, so there is no causal form,
and no `mask` to ask for one. A convolution along the sequence is an E with shifted rows.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Bool, Float, K, Out, Q, V

Projection = Float[Array, "*X R S"]  # (R,S), or (X,R,S) with X = K or N
ValueProjection = Float[Array, "*Y R S"]  # the same, for itself


@of_whole_text
@on_any_mesh
def linformer(
    q: Q,
    k: K,
    v: V,
    key_projection: Projection,
    value_projection: ValueProjection,
    *,
    visible: Bool[Array, "B S"] | None = None,
    impl: Impl = None,
) -> Out:
    """Attention to E K and F V, for encoders.

    A projection is (R,S) where heads share it, (K,R,S) or (N,R,S) where they do not; the same one
    may be given for both, and to every layer. Of a longer one the first S columns count. `visible`
    says which keys are tokens: padding is zero before it is projected.
    """
    N = q.shape[2]
    if visible is not None:
        k, v = _without_padding(k, visible), _without_padding(v, visible)
    k = project_tokens("key_projection", key_projection, k, N)
    v = project_tokens("value_projection", value_projection, v, N)
    return attend(wide(q), k, v, impl=impl).astype(q.dtype)


def _without_padding(x: K, visible: Bool[Array, "B S"]) -> K:
    """Zeros for what is no token, NaN or not."""
    shape = getattr(visible, "shape", None)
    if shape != x.shape[:2]:
        raise ValueError(
            f"visible: {visible if shape is None else shape}; expected booleans (B,S) = "
            f"{x.shape[:2]}, which keys are tokens. A causal mask, or any that differs by query, "
            "cannot be kept: each projected key is a mixture of all keys"
        )
    return jnp.where(visible[..., None, None], x, 0.0)


def project_tokens(name: str, weight: Projection, x: K, N: int) -> Float[Array, "B R N H"]:
    """Mixtures of the tokens of x for each of N heads, wide; `name` is weight's in errors."""
    S, heads = x.shape[1:3]
    fits = weight.ndim == 2 or (weight.ndim == 3 and weight.shape[0] in (heads, N))
    if not fits or weight.shape[-1] < S:
        raise ValueError(
            f"{name}: shape {weight.shape}; expected (R,S) or (X,R,S) with X one of K = {heads}, "
            f"N = {N}, for at least S = {S} keys"
        )
    x = wide(x)
    weight = weight[..., :S].astype(x.dtype)
    if weight.ndim == 2:
        mixed = jnp.einsum("RS,BSKH->BRKH", weight, x, precision="highest")
        return jnp.repeat(mixed, N // heads, axis=2)
    x = jnp.repeat(x, N // heads, axis=2)
    weight = jnp.repeat(weight, N // len(weight), axis=0)
    return jnp.einsum("NRS,BSNH->BRNH", weight, x, precision="highest")


def mean_pool_projection(S: int, R: int) -> Float[Array, "R S"]:
    """The projection that averages R runs of neighboring keys, equally long but for one key."""
    if not 1 <= R <= S:
        raise ValueError(f"R: {R}; expected an integer from 1 to S = {S}")
    run_of_key = np.arange(S) * R // S
    inside = run_of_key == np.arange(R)[:, None]
    return jnp.asarray(inside / inside.sum(1, keepdims=True))


_all_keys = by_sizes(lambda z: np.eye(z["S"]))

OPS = (
    Op(
        linformer,
        papers=(146,),
        reads="all",
        draw={
            "key_projection": Draw(lambda slot: slot.normal("N R S")),
            "value_projection": Draw(lambda slot: slot.normal("R S")),
        },
        limits=(
            Limit(
                "projections that change nothing leave softmax attention",
                {"key_projection": _all_keys, "value_projection": _all_keys},
                multi_head_attention,
            ),
        ),
    ),
)
