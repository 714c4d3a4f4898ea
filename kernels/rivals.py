"""PyTorch's attention and flash-linear-attention, as runners: what `forms` is timed beside.

Only functions import them.
"""

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any

from attnjax.kernels.forms import BOTH, BWD, FWD, Runner, Sizes, Spec


def missing(library: str) -> str | None:
    """Why "torch" or "fla" cannot be timed here, or None."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch  # type: ignore[import-not-found]

    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    if library == "fla" and importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed"
    return None


class Torch:
    """fn(*draw()), with gradients of everything that has a floating-point dtype."""

    def __init__(self, fn: Any, draw: Callable[[], Any], mode: str, within: Any = None) -> None:
        import torch  # type: ignore[import-not-found]

        self.torch, self.fn, self.draw, self.mode = torch, fn, draw, mode
        self.within = within or contextlib.nullcontext  # a choice of the backend
        self.args, self.out, self.g = [], None, None

    def load(self, seed: int) -> None:
        self.drop()
        self.torch.manual_seed(seed)
        self.args = [x.detach().requires_grad_(self.mode != FWD) for x in self.draw()]
        if self.mode != FWD:
            with self.within():
                self.out = self.fn(*self.args)
            self.g = self.torch.randn_like(self.out)
        self.torch.cuda.synchronize()

    def run(self, n: int) -> None:
        grad = self.torch.autograd.grad
        recording = self.torch.set_grad_enabled(self.mode != FWD)
        with recording, self.within():
            for _ in range(n):
                if self.mode == BWD:
                    grad(self.out, self.args, self.g, retain_graph=True)
                    continue
                out = self.fn(*self.args)
                if self.mode == BOTH:
                    grad(out, self.args, self.g)
        self.torch.cuda.synchronize()

    def drop(self) -> None:
        self.args, self.out, self.g = [], None, None


def _draw_qkv(z: Sizes) -> Callable[[], Any]:
    """q, k, v as (B,N,T,H) views of (B,T,N,H): what layers hand over, and what JAX is given."""
    import torch  # type: ignore[import-not-found]

    shapes = ((z.B, z.T, z.N, z.H), (z.B, z.S, z.K, z.H), (z.B, z.S, z.K, z.H))
    draw = lambda s: torch.randn(s, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    return lambda: tuple(map(draw, shapes))


def sdpa(z: Sizes, mode: str, spec: Spec, backend: str) -> Runner:
    """scaled_dot_product_attention as PyTorch chooses ("default"), or "cudnn"."""
    import torch  # type: ignore[import-not-found]
    from torch.nn.attention import SDPBackend, sdpa_kernel  # type: ignore[import-not-found]

    fused = torch.nn.functional.scaled_dot_product_attention
    fn = lambda q, k, v: fused(q, k, v, is_causal=spec[0] == "causal", enable_gqa=z.N != z.K)
    within = (lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)) if backend == "cudnn" else None
    return Torch(fn, _draw_qkv(z), mode, within)


def flex(z: Sizes, mode: str, spec: Spec) -> Runner:
    """Compiled flex_attention; the list of blocks is made once, before any timing."""
    import torch._dynamo  # type: ignore[import-not-found]
    import torch._functorch.config  # type: ignore[import-not-found]
    from torch.nn.attention import flex_attention as f  # type: ignore[import-not-found]

    torch._dynamo.reset()  # else the limit of recompilations is met after a few sizes
    torch._functorch.config.donated_buffer = False  # the pullback is called more than once
    blocks = None
    if spec[0] != "full":
        blocks = f.create_block_mask(mask_mod(spec, z, "cuda"), None, None, z.T, z.S, "cuda")
    compiled = torch.compile(f.flex_attention, dynamic=False)
    fn = lambda q, k, v: compiled(q, k, v, block_mask=blocks, enable_gqa=z.N != z.K)
    return Torch(fn, _draw_qkv(z), mode)


def mask_mod(spec: Spec, z: Sizes, device: str) -> Callable[..., Any]:
    """A mask as FlexAttention wants it: (b, head, q, k) -> allowed."""
    import torch  # type: ignore[import-not-found]

    name, *sizes = spec
    if name == "causal":
        return lambda b, h, q, k: k <= q
    if name == "window":
        return lambda b, h, q, k: (k <= q) & (q - k <= sizes[0])
    if name == "sinks_window":
        return lambda b, h, q, k: (k <= q) & ((k < sizes[0]) | (q - k <= sizes[1]))
    if name == "document":
        ids = torch.arange(z.T, device=device) * sizes[0] // z.T
        return lambda b, h, q, k: (k <= q) & (ids[q] == ids[k])
    assert name == "neighborhood", spec
    side, width = sizes

    def near(q: Any, k: Any) -> Any:
        ahead = k - torch.clamp(q - width // 2, 0, side - width)
        return (ahead >= 0) & (ahead < width)

    return lambda b, h, q, k: near(q // side, k // side) & near(q % side, k % side)


def linear(z: Sizes, mode: str, kind: str) -> Runner:
    """flash-linear-attention's chunked form of "none", "scalar", "channel" or "delta"."""
    import torch  # type: ignore[import-not-found]
    import torch.nn.functional as F  # type: ignore[import-not-found]

    normal = lambda *shape: torch.randn(shape, device="cuda")
    token, wide = (z.B, z.T, z.N), (z.B, z.T, z.N, z.H)

    def draw() -> Any:
        q, k, v = (normal(*wide) for _ in range(3))
        k = F.normalize(k, dim=-1)
        gate = {
            "none": lambda: (), "scalar": lambda: (F.logsigmoid(3 + normal(*token)),),
            "channel": lambda: (F.logsigmoid(3 + normal(*wide)),),
            "delta": lambda: (normal(*token).sigmoid().bfloat16(),),
        }[kind]()  # fmt: skip
        return (*(x.bfloat16() for x in (q, k, v)), *gate)

    if kind == "none":
        from fla.ops.linear_attn import chunk_linear_attn  # type: ignore[import-not-found]

        fn = lambda q, k, v: chunk_linear_attn(q, k, v, normalize=False)[0]
    elif kind == "scalar":
        from fla.ops.simple_gla import chunk_simple_gla  # type: ignore[import-not-found]

        fn = lambda q, k, v, g: chunk_simple_gla(q, k, v, g=g)[0]
    elif kind == "channel":
        from fla.ops.gla import chunk_gla  # type: ignore[import-not-found]

        fn = lambda q, k, v, g: chunk_gla(q, k, v, g=g)[0]
    else:
        from fla.ops.delta_rule import chunk_delta_rule  # type: ignore[import-not-found]

        fn = lambda q, k, v, beta: chunk_delta_rule(q, k, v, beta=beta)[0]
    return Torch(fn, draw, mode)
