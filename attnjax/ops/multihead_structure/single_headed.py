"""Single-headed attention of a recurrent network to its own past, with next to no projections.

    h = norm(x),  own = norm'(x),    m = [memory; own]
    q = sigmoid(a) norm''(h W + b),  k = sigmoid(c) m,  v = u m      a, c, u vectors of width W
    u = sigmoid(f(z)) tanh(g(z)),  z = sigmoid(d)                    f, g affine, d a vector
    out = h + softmax(q k^T / sqrt(W)) v,    causal, all memory visible
    boom(x) = sum of the W-wide parts of gelu(x W_up + b),  gelu(x) = x sigmoid(1.702 x)

Only q has a projection. u depends on no token: after training it is one vector.

Paper: Merity, "Single Headed Attention RNN: Stop Thinking With Your Head", 2019, arXiv:1911.11423;
code: Smerity/sha-rnn.
Limits: none but the oracle; a run split anywhere is the whole run.
Differs: the network around is an LSTM on norm(x) before, and x' + boom(norm(x)) after, x' another
norm of x; dropout of q, v and results belongs to training.
"""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jax.nn import sigmoid

from attnjax.core import masks
from attnjax.core.numerics import Affine, aligned, layer_norm, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Op
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]
Vector = Float[Array, " W"]


class Norm(NamedTuple):
    """A layer norm with its scale and shift, wide."""

    scale: Vector
    shift: Vector

    def __call__(self, x: Array) -> Array:
        x = layer_norm(wide(x), 1e-12)
        return x * aligned(self.scale, x) + aligned(self.shift, x)


class SingleHead(NamedTuple):
    """Weights; a, c and d of the formula are what sigmoids are taken of, zeros at first."""

    h_norm: Norm
    m_norm: Norm
    q: Annotated[Affine, "W W"]
    q_norm: Norm
    a: Vector
    c: Vector
    d: Vector
    f: Annotated[Affine, "W W"]
    g: Annotated[Affine, "W W"]


@on_any_mesh
def single_headed_attention(
    x: Tokens,
    weights: SingleHead,
    *,
    state: Float[Array, "B M W"] | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """out, or (out, memory): `state` is the memory of the tokens before x, normalized.

    The memory grows by x: keep the last so many of it (the paper 5000, without gradient).
    """
    w = weights
    h, m = w.h_norm(x), w.m_norm(x)
    if state is not None:
        m = jnp.concatenate([wide(state), m], axis=1)
    z = sigmoid(wide(w.d))
    u = aligned(sigmoid(w.f(z)) * jnp.tanh(w.g(z)), m)
    q, k = (aligned(sigmoid(wide(a)), y) * y for a, y in ((w.a, w.q_norm(w.q(h))), (w.c, m)))
    head = lambda x: x[:, :, None]
    read = attend(head(q), head(k), head(u * m), mask=masks.causal_to_end, impl=impl)
    out = (h + read[:, :, 0]).astype(x.dtype)
    return (out, m) if return_state else out


@on_any_mesh
def boom(x: Tokens, up: Annotated[Affine, "W E"]) -> Tokens:
    """A feed-forward layer whose way back is a sum: E a multiple of W, its rest is dropped."""
    W = x.shape[-1]
    inner = up(x)
    inner = inner * sigmoid(1.702 * inner)
    parts = inner.shape[-1] // W
    return inner[..., : parts * W].reshape(*x.shape[:-1], parts, W).sum(-2).astype(x.dtype)


OPS = (
    Op(single_headed_attention, papers=(117,)),
    Op(boom, papers=(117,), sizes={"E": 19}),
)
