"""The fused implementation of engines 1 and 3 as a value; `fused` executes it.

Only running it, or asking whether it can run, imports the kernels.
"""

from dataclasses import dataclass

from attnjax.core.normalizers import State
from attnjax.core.pairwise.request import Request
from attnjax.typing import Array

PAPERS = (68, 138, 214, 248)


@dataclass(frozen=True)
class Triton:
    """The implementation as a value: `attend(..., impl=Triton(block_q=128, block_k=64))`.

    block_q, block_k   sizes of the tiles, powers of two from 16 on; None takes those of `tilings`
    tf32               float32 products by TensorFloat-32, with 10 bits of mantissa; else exactly
    interpret          by Triton's interpreter, on any machine: for tests, far too slow for use

    Forward mode and second derivatives are those of `Blockwise`.
    """

    block_q: int | None = None
    block_k: int | None = None
    tf32: bool = False
    interpret: bool = False

    def __post_init__(self) -> None:
        for name in ("block_q", "block_k"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or size < 16 or size & (size - 1)):
                raise ValueError(f"Triton: {name} is {size!r}, expected a power of two from 16 on")

    def supported(self, request: Request) -> str | None:
        """The first reason why the kernels do not apply, or None."""
        from attnjax.core.pairwise import fused

        return fused.unsupported(self, request)

    def run(self, request: Request) -> Array:
        """The weighted sum of values, (B,N,T,D)."""
        from attnjax.core.pairwise import fused

        return fused.run(self, request)

    def state(self, request: Request) -> State:
        """What the keys leave behind for each query, to be merged with what other keys leave."""
        from attnjax.core.pairwise import fused

        return fused.state(self, request)
