"""CHELA: linear attention whose queries and keys come from a short-long convolution.

    z = silu((k_long + pad(k_short)) * x W_z),    * causal, each channel by itself
    q = silu(kappa_q z + mu_q),    k = silu(kappa_k z + mu_k),    v = silu(x W_v)
    o_t = q_t . S_t,    S_t = S_{t-1} + k_t v_t^T
    out = g (norm(o) W_o) + (1 - g) x,    g = sigmoid(x W_g)

Paper: Liu et al., "Short-Long Convolutions Help Hardware-Efficient Linear Attention to Focus on
Long Sequences", 2024, arXiv:2406.08128, section 4.
Limits: a closed gate returns x; a convolution that is the identity leaves plain linear attention.
Differs: the place of the gates is that of Mega, which the paper builds on; that the convolutions
are added, and not one behind the other, is our reading, which no code was there to confirm.
"""

from typing import Annotated, Any, NamedTuple

from jax.nn import sigmoid, silu

from attnjax.core import features
from attnjax.core.numerics import Affine, aligned, einsum, rms_norm, wide
from attnjax.core.recurrence import linear
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.scan.convolution import long_conv
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

X = Float[Array, "B T W"]


class Scale(NamedTuple):
    """z -> kappa z + mu, elementwise, for each head."""

    kappa: Float[Array, "N Z"]
    mu: Float[Array, "N Z"]

    def __call__(self, z: Array) -> Array:
        return z * aligned(self.kappa, z) + aligned(self.mu, z)


class Weights(NamedTuple):
    """Learned: kernels of L and a few tokens, and maps of widths W (the model) and Z."""

    long: Float[Array, "L W"]
    short: Float[Array, "C W"]
    z: Annotated[Affine, "W Z"]
    q: Scale
    k: Scale
    v: Float[Array, "W N H"]
    out: Float[Array, "N H W"]
    gate: Annotated[Affine, "W W"]


class State(NamedTuple):
    """The last L - 1 inputs, which the convolution reads, and the memory of linear attention."""

    before: Float[Array, "B L-1 W"]
    attention: linear.State


def merged(long: Float[Array, "L W"], short: Float[Array, "C W"]) -> Float[Array, "L W"]:
    """One kernel for the sum of both convolutions."""
    return wide(long).at[: len(short)].add(wide(short))


@of_whole_text
@on_any_mesh
def chela(
    x: X,
    weights: Weights,
    *,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal; time O(T log^2 T)."""
    w = weights
    before, memory = (None, None) if state is None else state
    smooth, before = long_conv(x, merged(w.long, w.short), before)
    z = silu(w.z(smooth))[:, :, None]
    q = silu(w.q(z))
    k = silu(w.k(z))
    v = silu(einsum("BTW,WND->BTND", x, w.v))
    o, memory = linear_attend(q, k, v, state=memory, return_state=True, impl=impl)
    o = einsum("BTND,NDW->BTW", rms_norm(o), w.out)
    g = sigmoid(w.gate(x))
    out = (g * o + (1 - g) * wide(x)).astype(x.dtype)
    return (out, State(before, memory)) if return_state else out


def _closed(weights: Weights) -> Weights:
    return weights._replace(gate=weights.gate._replace(b=weights.gate.b - 100.0))


OPS = (
    Op(
        chela,
        papers=(273,),
        sizes={"L": 6, "C": 3, "Z": 7},
        limits=(
            Limit("a closed gate returns x", {"weights": adjusted(_closed)}, features.identity),
        ),
    ),
)
