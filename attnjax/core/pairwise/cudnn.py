"""cuDNN's fused attention, as jax.nn offers it: plain softmax on an NVIDIA GPU."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.mods import is_pair_bias
from attnjax.core.pairwise.operands import Shape
from attnjax.core.pairwise.request import Request, allowed
from attnjax.typing import Array

LARGEST = 2**31 - 1  # elements: beyond it cuDNN's indices wrap, and gradients are wrong
LOWEST = {"float16": -(2.0**15)}  # of a bias; the difference of two lower ones goes wrong in cuDNN


@dataclass(frozen=True)
class CuDNN:
    """jax.nn.dot_product_attention(implementation="cudnn") for what it computes as `attend` does.

    Its windows end at the query, its lengths are even here (odd ones fail in training with a bias),
    and a query that may see no key has no row of zeros there: such calls are refused.  NaN of q, k
    and v, and biases of -inf, mean what they mean everywhere.

    `inner` names jax.nn's implementation; "xla" runs the same translation anywhere, for tests.
    """

    inner: str = "cudnn"

    def missing(self) -> str | None:
        """Why this process cannot run it, whatever the call; None where it can."""
        if self.inner == "cudnn" and jax.default_backend() != "gpu":
            return f"needs an NVIDIA GPU, this process runs on {jax.default_backend()}"
        return None

    def supported(self, request: Request) -> str | None:
        """The first reason why cuDNN does not apply, or None."""
        z = request.shape
        if (reason := self.missing()) is not None:
            return reason
        if request.selection is not None:
            return "selected blocks"
        if request.normalizer.name != "softmax":
            return f"normalizer {request.normalizer.name}: only softmax"
        if len(request.mods) > 1 or not all(map(is_pair_bias, request.mods)):
            return "mods: only one pair_bias"
        if request.v_table is not None:
            return "relative values"
        if request.q_positions is not None or request.k_positions is not None:
            return "explicit positions"
        if request.dropout is not None:
            return "dropout of weights"
        if self.inner == "cudnn" and request.dtype not in (jnp.float16, jnp.bfloat16):
            return f"dtype {jnp.dtype(request.dtype).name}: only float16 and bfloat16"
        return _of_mask(request.mask, z) or self._of_sizes(request)

    def _of_sizes(self, request: Request) -> str | None:
        z, widest = request.shape, 256
        if self.inner == "cudnn":
            from attnjax.kernels import launch

            widest = 256 if launch.capability() >= 90 else 128
        if z.H != z.D or z.H % 8 or z.H > widest:
            return f"H = {z.H}, D = {z.D}: only H = D, a multiple of 8 up to {widest}"
        if z.T % 2 or z.S % 2:
            return f"T = {z.T}, S = {z.S}: only even lengths"
        operands = [x.shape for m in request.mods for x in m.operands]
        pairs = [(*shape[:2], z.T, z.S) for shape in operands]
        for shape in (request.q.shape, request.k.shape, *pairs):
            if math.prod(shape) > LARGEST:
                return f"an array of {math.prod(shape)} elements: only up to 2^31 - 1"
        return None

    def run(self, request: Request) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        request = request.scaled()
        rows = lambda x: x.transpose(0, 2, 1, 3).astype(request.dtype)
        bias = dead = None
        if request.mods:
            bias, dead = _bias(request)
        mask = request.mask
        left = mask.left if isinstance(mask, masks.Window) else None
        out = jax.nn.dot_product_attention(
            rows(request.q), rows(request.k), rows(request.v), bias,
            scale=1.0, is_causal=isinstance(mask, masks.Window),
            local_window_size=None if left is None else (left, 0),
            implementation=self.inner,  # type: ignore[arg-type]
        )  # fmt: skip
        out = out.transpose(0, 2, 1, 3)
        out = out if dead is None else jnp.where(dead, jnp.zeros((), out.dtype), out)
        seen = _seen(request.k_poison, mask, request.shape.T)
        return out + (request.q_poison + seen).astype(out.dtype)


def _of_mask(mask: masks.Mask, z: Shape) -> str | None:
    if isinstance(mask, masks.Everything):
        return None
    if not isinstance(mask, masks.Window) or mask.right != 0:
        return f"mask {mask!r}: only causal and window(n); others would need T x S memory"
    if mask.left is not None and z.T > z.S + mask.left:
        return f"mask {mask!r}, T = {z.T}, S = {z.S}: queries that see no key"
    return None


def _bias(request: Request) -> tuple[Array, Array]:
    """The bias as cuDNN takes it, (B|1,N|1,T,S), and the queries of which it forbids every key.

    What the mask forbids is zero, NaN included; -inf is a number below all others and all scores.
    """
    z = request.shape
    bias = request.mods[0].operands[0]
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], z.T, z.S))
    ok = allowed(request.mask, request.whole)
    ok = jnp.ones((1, 1, z.T, z.S), bool) if ok is None else ok
    forbidden = jnp.isneginf(bias)
    lowest = LOWEST.get(jnp.dtype(request.dtype).name, -(2.0**41))
    bias = jnp.where(forbidden, lowest, jnp.maximum(bias, lowest / 2))
    dead = ~(ok & ~forbidden).any(-1, keepdims=True)
    return jnp.where(ok, bias, 0.0).astype(request.dtype), dead


def _seen(k_poison: Array, mask: masks.Mask, T: int) -> Array:
    """What bad keys (B,N,1,S) do to the queries that may see one, (B,N,T,1): NaN, else zero."""
    bad = jnp.isnan(k_poison[..., 0, :])
    S = bad.shape[-1]
    upto = jnp.pad(jnp.cumsum(bad, axis=-1, dtype=jnp.int32), [(0, 0)] * (bad.ndim - 1) + [(1, 0)])
    t = np.arange(T)
    left = mask.left if isinstance(mask, masks.Window) else None
    last = np.minimum(t + 1, S) if isinstance(mask, masks.Window) else np.full(T, S)
    first = np.zeros(T, int) if left is None else np.clip(t - left, 0, S)
    count = upto[..., last] - upto[..., first]
    return jnp.where(count > 0, jnp.nan, 0.0).astype(k_poison.dtype)[..., None]
