"""cuDNN's fused attention, as jax.nn offers it: plain softmax on an NVIDIA GPU."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.mods import is_pair_bias
from attnjax.core.pairwise.request import Request
from attnjax.typing import Array


@dataclass(frozen=True)
class CuDNN:
    """jax.nn.dot_product_attention(implementation="cudnn") for what it covers.

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
        if not isinstance(request.mask, masks.Everything | masks.Window):
            return f"mask {request.mask!r}: only causal and window; others would need T x S memory"
        if self.inner == "cudnn" and request.dtype not in (jnp.float16, jnp.bfloat16):
            return f"dtype {jnp.dtype(request.dtype).name}: only float16 and bfloat16"
        if z.H != z.D or z.H % 8 or z.H > 256:
            return f"H = {z.H}, D = {z.D}: only H = D, a multiple of 8 up to 256"
        return None

    def run(self, request: Request) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        z, request = request.shape, request.scaled()
        rows = lambda x: x.transpose(0, 2, 1, 3).astype(request.dtype)
        bias = None
        if request.mods:
            bias = request.mods[0].operands[0]
            bias = bias.astype(request.dtype)
        mask = request.mask
        limits = (mask.left, mask.right) if isinstance(mask, masks.Window) else (None, None)
        causal = limits[1] == 0
        window = None
        if limits not in ((None, None), (None, 0)):
            window = (
                z.S if limits[0] is None else limits[0],
                z.T if limits[1] is None else limits[1],
            )
        out = jax.nn.dot_product_attention(
            rows(request.q), rows(request.k), rows(request.v), bias,
            scale=1.0, is_causal=causal, local_window_size=window, implementation=self.inner,  # type: ignore[arg-type]
        )  # fmt: skip
        return out.transpose(0, 2, 1, 3)
