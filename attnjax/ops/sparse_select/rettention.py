"""Re-ttention: few keys stand for all, with what the rest gave in an earlier step of diffusion.

    measured once in some steps, of attention to all keys:
        rho_i = sum_{j kept} exp(s_ij) / sum_j exp(s_ij),   s_ij = q_i . k_j / sqrt(H)
        r_i   = out_i - rho_i softmax_{j kept}(s_ij) v_j
    in the steps between:  out_i = rho_i softmax_{j kept}(s_ij) v_j + r_i,  then rho_i grows

Paper: Chen et al., "Re-ttention: Ultra Sparse Visual Generation via Attention Statistical Reshape",
2025, arXiv:2505.22918, section 4; code: cccrrrccc/Re-ttention.
Limits: with rho = 1 and r = 0 it is softmax attention to the kept keys; right after it was
measured, of the same q, k, v, it is attention to all.
Differs: r is taken before the output projection, which is linear, and so as good as behind it.

A schedule is a loop of the caller's: the first steps, and then every fifth or so, `measure_rest`;
in the others `rettention`, and `ratio + 0.04` for the next. The code keeps the window
`masks.window(w // 2, w // 2)` with w = T / 32, and all keys of a prompt, if there is one.
"""

import jax.numpy as jnp

from attnjax.core import masks, normalizers
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend, attend_state, join_states
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, uniform
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import K, Out, PerQuery, Q, V


@on_any_mesh
def rettention(
    q: Q,
    k: K,
    v: V,
    ratio: PerQuery,
    rest: Out,
    *,
    kept: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """Attention to the keys of `kept`, times `ratio`, plus `rest`: see `measure_rest`."""
    out = attend(wide(q), wide(k), wide(v), mask=kept, impl=impl)
    return (wide(ratio)[..., None] * out + wide(rest)).astype(q.dtype)


@on_any_mesh
def measure_rest(
    q: Q, k: K, v: V, *, kept: masks.Mask, impl: Impl = None
) -> tuple[Out, PerQuery, Out]:
    """Attention to all keys, rho of those of `kept`, and r; rho and r are wide."""
    dtype, q, k, v = q.dtype, wide(q), wide(k), wide(v)
    few, others = (attend_state(q, k, v, mask=m, impl=impl) for m in (kept, ~kept))
    total = normalizers.merge(few, others, normalizers.softmax.rescale)
    ratio = jnp.exp(normalizers.log_sum(few) - normalizers.log_sum(total))  # (B,N,T,1)
    ratio = jnp.moveaxis(ratio, 1, 2)
    out = join_states(total)
    rest = out - ratio * join_states(few)
    return out.astype(dtype), ratio[..., 0], rest


OPS = (
    Op(
        rettention,
        papers=(218,),
        reads="all",
        draw={"ratio": uniform(0.2, 1.0)},
        limits=(
            Limit(
                "nothing was left out: softmax attention",
                {"ratio": fill(1.0), "rest": fill(0.0)},
                multi_head_attention,
            ),
        ),
    ),
)
