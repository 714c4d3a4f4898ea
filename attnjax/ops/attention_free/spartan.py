"""SpaRTAN's mixers: near and dilated convolutions for space, a wave's sum for channels.

    spatial   u = x W_0 + b_0,  u = u + gamma * (u - mean of u),    gamma per channel, 1e-5 at first
              out = [excited(act(near(u))); excited(act(far_2(far_1(u))))] W + b
    channel   w = x W_w + b_w,  a = gelu(x W_a + b_a),  m = the channel of x that is largest
              f = w * a + w_m a_m,    g = f in pairs, as complex numbers, each times a learned one
              out = excited(act(conv(g))) W + b
    excited(y) = y * sigmoid(relu(mean over cells of y W_1 + b_1) W_2 + b_2)
    act(y)     = gelu(norm(y)), a batch norm: scale and shift here, as after training

near and far_1, far_2 are k x k, the latter with holes of one cell.  A block is

    x = x + s_1 * spatial(norm_1(x)),    then x + s_2 * channel(norm_2(x))

with scales s of 1e-5 at first and norms `Norm.of_examples(x, 1e-6)`.

Paper: Pay et al., "SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual
Recognition", 2025, arXiv:2507.10999; code: henry-pay/SpaRTAN.
Limits: none but the oracle; complex numbers of 1 leave f as it is.
"""

import itertools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu

from attnjax.core.numerics import Affine, aligned, einsum, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Op
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Float

Image = Float[Array, "B T columns W"]


class Excite(NamedTuple):
    """A gate of each channel from the means of all; R is a quarter of the width in the code."""

    squeeze: Float[Array, "W R"]
    squeeze_bias: Float[Array, " R"]
    expand: Float[Array, "R W"]
    expand_bias: Float[Array, " W"]

    def __call__(self, x: Array) -> Array:
        mean = x.mean((1, 2), keepdims=True)
        inside = relu(Affine(self.squeeze, self.squeeze_bias)(mean))
        return x * jax.nn.sigmoid(Affine(self.expand, self.expand_bias)(inside))


class SpatialMixer(NamedTuple):
    """Learned; E is half of W; I channels of each kernel's group, E / I groups: 1 is depthwise."""

    into: Annotated[Affine, "W E"]
    gamma: Float[Array, " E"]
    near: Float[Array, "k k I E"]
    near_norm: Annotated[Norm, "E"]
    near_gate: Annotated[Excite, "E R"]
    far_1: Float[Array, "k k I E"]
    far_2: Float[Array, "k k I E"]
    far_norm: Annotated[Norm, "E"]
    far_gate: Annotated[Excite, "E R"]
    out: Annotated[Affine, "2E W"]


class ChannelMixer(NamedTuple):
    """Learned; V is a multiple of W, `turn` the real and imaginary parts of V / 2 numbers."""

    weight: Annotated[Affine, "W V"]
    angle: Annotated[Affine, "W V"]
    turn: Float[Array, "pairs 2"]
    kernel: Float[Array, "k k J V"]
    norm: Annotated[Norm, "V"]
    gate: Annotated[Excite, "V R"]
    out: Annotated[Affine, "V W"]


@on_any_mesh
def spartan_spatial_mixer(x: Image, weights: SpatialMixer) -> Image:
    """Cells meet in kernels, far ones in means alone; norm and residual are the block's."""
    w = weights
    u = w.into(x)
    u = u + aligned(w.gamma, u) * (u - u.mean((1, 2), keepdims=True))
    near = w.near_gate(_act(_convolved(u, w.near), w.near_norm))
    far = _convolved(_convolved(u, w.far_1, 2), w.far_2, 2)
    far = w.far_gate(_act(far, w.far_norm))
    return w.out(jnp.concatenate([near, far], axis=-1)).astype(x.dtype)


@on_any_mesh
def spartan_channel_mixer(x: Image, weights: ChannelMixer) -> Image:
    """The largest channel is the first of equals, and has no gradient as a choice."""
    w = weights
    weight, angle = w.weight(x), _gelu(w.angle(x))
    largest = jnp.argmax(x, axis=-1, keepdims=True)
    of_largest = lambda y: jnp.take_along_axis(y, largest, axis=-1)
    f = weight * angle + of_largest(weight) * of_largest(angle)
    mixed = _act(_convolved(_turned(f, w.turn), w.kernel), w.norm)
    return w.out(w.gate(mixed)).astype(x.dtype)


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _act(x: Array, norm: Norm) -> Array:
    return _gelu(norm.rescaled(x))


def _turned(f: Array, turn: Float[Array, "pairs 2"]) -> Array:
    """Neighboring channels of f as real and imaginary part, times the numbers."""
    a, b = aligned(turn[:, 0], f), aligned(turn[:, 1], f)
    x, y = f[..., 0::2], f[..., 1::2]
    return jnp.stack([a * x - b * y, a * y + b * x], axis=-1).reshape(f.shape)


def _convolved(x: Array, kernel: Float[Array, "k k I E"], step: int = 1) -> Array:
    """Of x (B,T,columns,C) in C / I groups of channels, taps `step` cells apart, zeros around.

    A sum over taps, as `depthwise` is, for its reasons.
    """
    k, _, inner, E = kernel.shape
    (B, rows, columns, C), reach = x.shape, step * (k // 2)
    groups = C // inner
    padded = jnp.pad(wide(x), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    padded = padded.reshape(*padded.shape[:3], groups, inner)
    out = jnp.zeros((B, rows, columns, groups, E // groups), padded.dtype)
    for r, c in itertools.product(range(k), range(k)):
        seen = padded[:, r * step : r * step + rows, c * step : c * step + columns]
        tap = kernel[r, c].reshape(inner, groups, E // groups)
        out = out + einsum("BTcGI,IGE->BTcGE", seen, tap)
    return out.reshape(B, rows, columns, E)


OPS = (
    Op(
        spartan_spatial_mixer,
        papers=(342,),
        reads="all",
        sizes={"columns": 5, "E": 4, "2E": 8, "I": 2, "R": 3, "k": 3},
    ),
    Op(
        spartan_channel_mixer,
        papers=(342,),
        reads="all",
        sizes={"columns": 5, "V": 16, "pairs": 8, "J": 2, "R": 3, "k": 3},
    ),
)
