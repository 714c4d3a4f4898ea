"""All-gather: every device gets all keys and values, and attends to them for its own queries.

One collective forward, its reverse (a reduce-scatter) backward; O(S) memory.  It fits few key
heads, short keys and everything that needs all keys at once: selected blocks, too.

Papers: as for softmax layers of LASP-2H, Sun et al., 2025, arXiv:2502.07563; Llama 3, 2024,
arXiv:2407.21783, section 3.3.2.
"""

from dataclasses import dataclass, replace

from jax import lax

from attnjax.core.dispatch import Impl
from attnjax.core.normalizers import State
from attnjax.core.pairwise.attend import choose, choose_state
from attnjax.core.pairwise.request import Request, along_tokens
from attnjax.parallel.layouts import Layout, check_layout
from attnjax.parallel.tokens import LayoutSharding, Lengths, without_padding
from attnjax.parallel.wire import sent, with_poison, without_poison
from attnjax.typing import Array

PAPERS = (349,)


@dataclass(frozen=True)
class AllGather:
    """An implementation for use inside `jax.shard_map`: `attend(..., impl=AllGather("sp"))`.

    axis      mesh axis over which queries and keys are split, T/P and S/P on each device
    layout    which tokens a device has: "contiguous", "zigzag", "striped", or "given"
    inner     what runs on a device, as `impl` of `attend`
    lengths   (T, S) where the last tokens are padding; None: P times what is here

    Arguments as for `Ring`.  Under a selection, that of this device's queries
    names blocks of all keys, in the order of the text.
    """

    axis: str
    layout: Layout = "contiguous"
    inner: Impl = None
    lengths: Lengths | None = None

    def __post_init__(self) -> None:
        check_layout("AllGather", self.layout)

    @property
    def sharding(self) -> LayoutSharding:
        return LayoutSharding("AllGather", (self.axis,), self.layout, self.lengths)

    def supported(self, request: Request) -> str | None:
        if self.layout == "given":
            missing = [n for n in ("q_positions", "k_positions") if getattr(request, n) is None]
            if missing:
                return (
                    f"layout 'given' without {' and '.join(missing)}: positions tell who is where"
                )
        return None

    def run(self, request: Request) -> Array:
        """The weighted sum of values for the queries here, (B,N,T,D)."""
        inside = self._gathered(request)
        return choose("attend", self.inner, inside).run(inside)

    def state(self, request: Request) -> State:
        """What all keys leave behind for each query here."""
        inside = self._gathered(request)
        return choose_state("attend_state", self.inner, inside).state(inside)

    def _gathered(self, request: Request) -> Request:
        z, sharding = request.shape, self.sharding
        _, S = sharding.lengths(z.T, z.S)
        if self.layout == "given":  # padding may stand anywhere
            S = z.S * sharding.size

        def arrange(x: Array, axis: int) -> Array:
            if self.layout != "given":
                x = sharding.in_text_order(x, axis)
            return lax.slice_in_dim(x, 0, S, axis=axis)

        def gather(x: Array, axis: int) -> Array:
            if x.shape[axis] != z.S:  # a pair operand has all columns
                return arrange(x, axis)
            return arrange(lax.all_gather(x, self.axis, axis=axis, tiled=True), axis)

        def narrow(x: Array) -> Array:
            move = lambda x: lax.all_gather(x, self.axis, axis=2, tiled=True)
            return arrange(sent(move, request.dtype, x), 2)

        inside = replace(request, k=None, v=None, k_poison=None)
        inside = along_tokens(inside, lambda x, axis: x, gather)
        k, k_poison = without_poison(narrow(with_poison(request.k, request.k_poison)), z.N)
        q_positions = request.q_positions
        if q_positions is None:
            q_positions = sharding.positions(z.T)
        return replace(
            inside,
            k=k,
            v=narrow(request.v),
            mask=without_padding(request, sharding),
            q_positions=q_positions,
            k_poison=k_poison,
            shape=replace(z, S=S),
        )
