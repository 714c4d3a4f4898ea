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

import jax.numpy as jnp
from jax.nn import sigmoid, silu

from attnjax.core import features
from attnjax.core.numerics import Affine, aligned, einsum, rms_norm, wide
from attnjax.core.recurrence import linear
from attnjax.core.recurrence.documents import Compact, Documents, compact
from attnjax.core.recurrence.linear import Impl, linear_attend
from attnjax.core.scan.convolution import long_conv
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float, Int

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
    """The last L - 1 inputs, which the convolution reads, and the memory of linear attention.

    Where there are documents, also the ids of these inputs, -1 for none.
    """

    before: Float[Array, "B L-1 W"]
    attention: linear.State
    ids: Int[Array, "B L-1"] | None = None


def merged(long: Float[Array, "L W"], short: Float[Array, "C W"]) -> Float[Array, "L W"]:
    """One kernel for the sum of both convolutions."""
    return wide(long).at[: len(short)].add(wide(short))


@of_whole_text
@on_any_mesh
def chela(
    x: X,
    weights: Weights,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal; time O(T log^2 T).  `documents` are ids as `linear_attend` takes them."""
    w = weights
    before, memory, ids = (None, None, None) if state is None else state
    row = compact(documents, x.shape[:2], None if memory is None else memory.document)
    given, x = x, x if row is None else row.together(x)
    smooth, before, ids = _smoothed(x, merged(w.long, w.short), before, row, ids)
    z = silu(w.z(smooth))[:, :, None]
    q = silu(w.q(z))
    k = silu(w.k(z))
    v = silu(einsum("BTW,WND->BTND", x, w.v))
    own = None if row is None else row.ids
    o, memory = linear_attend(q, k, v, documents=own, state=memory, return_state=True, impl=impl)
    o = einsum("BTND,NDW->BTW", rms_norm(o), w.out)
    g = sigmoid(w.gate(x))
    out = (g * o + (1 - g) * wide(x)).astype(given.dtype)
    out = out if row is None else row.apart(out)
    return (out, State(before, memory, ids)) if return_state else out


def _smoothed(
    x: X, kernel: Float[Array, "L W"], before: Array | None, row: Compact | None, ids: Array | None
) -> tuple[Array, Array, Array | None]:
    """Both convolutions of a row, the last L - 1 inputs and their ids."""
    if row is None:
        return *long_conv(x, kernel, before), None
    B, (L, W) = len(x), kernel.shape
    if before is None or ids is None:
        before, ids = jnp.zeros((B, L - 1, W), x.dtype), jnp.full((B, L - 1), -1, row.ids.dtype)
    ids = jnp.concatenate([ids.astype(row.ids.dtype), row.ids], axis=1)
    smooth, _ = long_conv(x, kernel, before, ids)
    inputs = jnp.concatenate([before.astype(smooth.dtype), wide(x)], axis=1)
    return smooth, row.last(inputs, L - 1), row.last(ids, L - 1)


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
