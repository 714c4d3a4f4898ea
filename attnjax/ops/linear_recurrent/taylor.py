"""TaylorShift: the second-order Taylor polynomial of exp in softmax, in quadratic or linear time.

    A_ij = f(x_ij) / sum_j f(x_ij),    f(x) = 1 + x + x^2 / 2,    x_ij = tau_n cos(q_i, k_j)
    direct      by the scores, O(T^2 H)
    efficient   f(x_ij) = phi(q_i) . phi(k_j),  phi(u) = [1, u, u (x) u / sqrt(2)],  O(T H^3)

Paper: Nauen, Palacio and Dengel, "TaylorShift: Shifting the Complexity of Self-Attention from
Squared to Linear (and Back) using Taylor-Softmax", 2024, arXiv:2403.02920.
Limits: tau = 0 gives the mean of the values; both forms agree; small tau is softmax attention.
Differs: outputs are not multiplied by sqrt(S / H), the paper's normalization of their size; its
powers of H and S that keep half precision from overflowing cancel, and sums here are float32.
"""

import math
from typing import NamedTuple

from attnjax.core import features, masks, normalizers
from attnjax.core.numerics import divide, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.recurrence import linear
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, uniform
from attnjax.ops.linear_recurrent.linear import mean_of_all
from attnjax.typing import K, Out, PerHead, Q, V


@on_any_mesh
def taylor_shift(
    q: Q, k: K, v: V, temperature: PerHead, *, block: int | None = None, impl: linear.Impl = None
) -> Out:
    """The efficient form; `block` as in linear_attend: 1 for causal, None for both directions."""
    phi = features.taylor(2)
    q = wide(temperature)[None, None, :, None] * features.cosine(wide(q))
    k = features.cosine(wide(k))
    return linear.linear_attend(phi(q), phi(k), v, normalize=divide, block=block, impl=impl)


def taylor_shift_direct(
    q: Q,
    k: K,
    v: V,
    temperature: PerHead,
    *,
    mask: masks.Mask = masks.everything,
    impl: Impl = None,
) -> Out:
    """The direct form, faster for few tokens; any mask."""
    out = attend(
        features.cosine(wide(q)),
        features.cosine(wide(k)),
        wide(v),
        mask=mask,
        normalizer=normalizers.taylor(2),
        scale=wide(temperature)[:, None],
        impl=impl,
    )
    return out.astype(v.dtype)


class Crossover(NamedTuple):
    """Lengths from which on the efficient form needs fewer operations, and fewer numbers stored."""

    operations: float
    numbers: float


def taylor_crossover(H: int) -> Crossover:
    """Solves the paper's counts, direct = efficient, for the length T, with D = H:

    operations   4 T^2 H + 6 T^2                         =  T (4 H^3 + 10 H^2 + 9 H + 4)
    numbers      T H + 2 T^2  (v, scores and weights)    =  H^2 (H + 1) + 2 T H + T (H + 1) + T H^2
    """
    operations = (4 * H**3 + 10 * H**2 + 9 * H + 4) / (4 * H + 6)
    # 2 T^2 - (H + 1)^2 T - H^2 (H + 1) = 0
    b, c = (H + 1) ** 2, H**2 * (H + 1)
    return Crossover(operations, numbers=(b + math.sqrt(b**2 + 8 * c)) / 4)


_INPUTS = {"temperature": uniform(0.5, 3.0)}
_MEAN = Limit(
    "temperature = 0 gives the mean of the values", {"temperature": fill(0.0)}, mean_of_all
)

OPS = (
    Op(
        taylor_shift,
        papers=(234,),
        reads="all",
        draw=_INPUTS,
        limits=(_MEAN, Limit("both forms agree", {}, taylor_shift_direct)),
    ),
    Op(
        taylor_shift_direct,
        papers=(234,),
        draw=_INPUTS,
        limits=(_MEAN, Limit("both forms agree", {}, taylor_shift)),
    ),
)
