"""cuDNN's fused attention, as jax.nn offers it: plain softmax on an NVIDIA GPU."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.call import Call
from attnjax.core.mods import is_pair_bias
from attnjax.typing import Array


@dataclass(frozen=True)
class CuDNN:
    """jax.nn.dot_product_attention(implementation="cudnn") for what it covers.

    `inner` names jax.nn's implementation; "xla" runs the same translation anywhere, for tests.
    """

    inner: str = "cudnn"

    def supported(self, call: Call) -> str | None:
        """The first reason why cuDNN does not apply, or None."""
        z = call.shape
        if self.inner == "cudnn" and jax.default_backend() != "gpu":
            return f"needs an NVIDIA GPU, this process runs on {jax.default_backend()}"
        if call.selection is not None:
            return "selected blocks"
        if call.normalizer.name != "softmax":
            return f"normalizer {call.normalizer.name}: only softmax"
        if len(call.mods) > 1 or not all(map(is_pair_bias, call.mods)):
            return "mods: only one pair_bias"
        if call.v_table is not None:
            return "relative values"
        if call.q_positions is not None or call.k_positions is not None:
            return "explicit positions"
        if not isinstance(call.mask, (type(None), masks.Window)):
            return (
                f"mask {call.mask!r}: only causal and window; other masks would need T x S memory"
            )
        if self.inner == "cudnn" and call.dtype not in (jnp.float16, jnp.bfloat16):
            return f"dtype {jnp.dtype(call.dtype).name}: only float16 and bfloat16"
        if z.H != z.D or z.H % 8 or z.H > 256:
            return f"H = {z.H}, D = {z.D}: only H = D, a multiple of 8 up to 256"
        return None

    def run(self, call: Call) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        z, call = call.shape, call.scaled()
        rows = lambda x: x.transpose(0, 2, 1, 3).astype(call.dtype)
        bias = None
        if call.mods:
            bias = call.mods[0].operands[0]
            bias = bias.astype(call.dtype)
        mask = call.mask
        limits = (None, None) if mask is None else (mask.left, mask.right)  # type: ignore[union-attr]
        causal = limits[1] == 0
        window = None
        if limits not in ((None, None), (None, 0)):
            window = (
                z.S if limits[0] is None else limits[0],
                z.T if limits[1] is None else limits[1],
            )
        out = jax.nn.dot_product_attention(
            rows(call.q), rows(call.k), rows(call.v), bias,
            scale=1.0, is_causal=causal, local_window_size=window, implementation=self.inner,  # type: ignore[arg-type]
        )  # fmt: skip
        return out.transpose(0, 2, 1, 3)
