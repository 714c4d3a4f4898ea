"""Softplus for exp, a scale that grows with the number of keys, and a re-weighting that sharpens.

    a_ij = softplus(log(H) log(n_i) cos(q_i, k_j)),    A = a / sum_j a                 (LSSA)
    A'_ij = relu(n_i A_ij - o_i)^power, divided by its sum over j                      (LSSAR)
    n_i: the number of keys that query i sees; i + 1 under the causal mask
    o_i: 1, the uniform level, but 0 for the first three queries

Paper: Gao, Spratling and Gionfrida, "Softplus Attention with Re-weighting Boosts Length
Extrapolation in Large Language Models", 2025, arXiv:2501.13428.
Limits: q = 0 gives the mean of the visible values in LSSA; LSSAR of power 1 with o_i = 0 for all
queries is LSSA.
Differs: formulas and constants are of two secondary sources that agree; they report 3 for the
power, too. Under another mask than the causal one, n_i and so the scale are ours.
"""

import math

import jax.numpy as jnp
import numpy as np

from attnjax.core import features, masks, mods, normalizers
from attnjax.core.blocks import runs
from attnjax.core.numerics import wide, working_dtype
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes, fill
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, K, Out, Q, V


@of_whole_text
def softplus_attention(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.causal, impl: Impl = None
) -> Out:
    """LSSA: the lengths of queries and keys do not matter.

    The causal mask costs nothing to count, any other one is formed once, T x S booleans.
    """
    longer = mods.mod(jnp.multiply, query=jnp.log(_visible(mask, q, k)))
    out = attend(
        features.cosine(wide(q)),
        features.cosine(wide(k)),
        wide(v),
        mods=(longer,),
        mask=mask,
        normalizer=normalizers.softplus(),
        scale=math.log(q.shape[-1]),
        impl=impl,
    )
    return out.astype(q.dtype)


@of_whole_text
@on_any_mesh
def softplus_reweighted(
    q: Q,
    k: K,
    v: V,
    *,
    power: int = 15,
    first: int = 3,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """LSSAR, which sharpens LSSA also in a model trained with it: what is below uniform is zero.

    The `first` queries lose nothing to the level: the only key of the very first one is at it. A
    later query gets zero if all its weights are equal.
    """
    if first < 0:
        raise ValueError(f"first: {first}; expected at least 0")
    (T, H), S = (q.shape[1], q.shape[-1]), k.shape[1]
    q_unit, k_unit, v_wide = features.cosine(wide(q)), features.cosine(wide(k)), wide(v)
    log_n = jnp.log(_visible(mask, q, k))
    of_all = runs.mask_of_tokens(mask, T, S)  # resolved for T queries, whichever are given

    def rows(start: int, stop: int, level: float) -> Out:
        some = slice(start, stop)
        log_of_some = log_n[some] if log_n.ndim == 1 else log_n[:, some]
        return attend(
            q_unit[:, some],
            k_unit,
            v_wide,
            mods=(mods.mod(jnp.multiply, query=log_of_some),),
            mask=of_all,
            normalizer=normalizers.softplus(power, level),
            scale=math.log(H),
            q_positions=np.arange(start, stop),
            impl=impl,
        )

    first = min(first, T)
    parts = [(0, first, 0.0), (first, T, 1.0)]
    outs = [rows(start, stop, level) for start, stop, level in parts if start < stop]
    return jnp.concatenate(outs, axis=1).astype(q.dtype)


def _visible(mask: masks.Mask, q: Q, k: K) -> Array:
    """The number of keys each query sees, (T,) or (B,T,N), at least one."""
    B, T, N, _ = q.shape
    S = k.shape[1]
    if mask == masks.causal:
        count = jnp.minimum(jnp.arange(1, T + 1), S)
    else:
        count = jnp.maximum(jnp.asarray(mask.dense(T, S)).sum(-1), 1)
    if count.ndim == 3:  # a mask that differs between sequences or heads
        count = jnp.broadcast_to(jnp.moveaxis(count, 1, 2), (B, T, N))
    return count.astype(working_dtype(q.dtype))


OPS = (
    Op(
        softplus_attention,
        papers=(121,),
        limits=(
            Limit(
                "q = 0 gives the mean of the visible values",
                {"q": fill(0.0)},
                causal_attention,
            ),
        ),
    ),
    Op(
        softplus_reweighted,
        papers=(121,),
        draw={"power": 3},
        limits=(
            Limit(
                "power 1 with a level of 0 for all is LSSA",
                {"power": 1, "first": by_sizes(lambda z: z["T"])},
                softplus_attention,
            ),
        ),
    ),
)
