"""Layers around attention to what is chosen by content."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax.core.blocks import runs
from attnjax.nn.attention import Attention, EditHeads, unedited
from attnjax.ops.sparse_select.nsa import Branches, native_sparse_attention
from attnjax.typing import Array

PAPERS = (214,)

Op = Callable[..., jax.Array]


class RunMLP(nnx.Module):
    """A run of `length` tokens to one: relu((x + code) W + b) W' + b', the tokens side by side.

    `code`, an array of (length, head_width), tells their places in the run; heads share all.
    """

    def __init__(self, head_width: int, length: int, *, rngs: nnx.Rngs):
        self.code = nnx.Param(0.02 * rngs.params.normal((length, head_width)))
        self.inner = nnx.Linear(length * head_width, 2 * head_width, rngs=rngs)
        self.outer = nnx.Linear(2 * head_width, head_width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B,n,l,K,H) to (B,n,K,H)."""
        x = jnp.swapaxes(x + self.code[...][:, None], 2, 3)
        return self.outer(jax.nn.relu(self.inner(x.reshape(*x.shape[:3], -1))))


class NativeSparse(Attention):
    """`native_sparse_attention` with all that it trains: causal self-attention, (B,T,width).

    Each branch has its own projections to keys and values, those of `Attention` being the selected
    branch's; a `RunMLP` compresses keys, another values; and a two-layer MLP reads the gates of
    each query and head off x.  Sizes as in `Attention`.

    Paper: Yuan et al., "Native Sparse Attention", 2025, arXiv:2502.11089.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        branches: Branches = Branches(),  # noqa: B008
        rngs: nnx.Rngs,
        **sizes: Any,
    ):
        self.op = cast(Op, functools.partial(native_sparse_attention, branches=branches))
        super().__init__(width, heads, attend=self.op, rngs=rngs, **sizes)
        K, H = self.k.out_features
        pair = lambda: nnx.List(
            [nnx.LinearGeneral(width, (K, H), use_bias=False, rngs=rngs) for _ in "kv"]
        )
        self.compressed, self.local = pair(), pair()
        self.compress = nnx.List([RunMLP(H, branches.length, rngs=rngs) for _ in "kv"])
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        self.mix = nnx.LinearGeneral(width, (heads, 3), rngs=rngs)
        self.branches = branches

    def gates(self, x: jax.Array) -> jax.Array:
        """(B,T,N,3): of the compressed, the selected and the local branch, in (0, 1)."""
        return jax.nn.sigmoid(self.mix(jax.nn.relu(self.hidden(x))))

    def combine(self, x: Array, q: Array, k: Array, v: Array, edit: EditHeads = unedited) -> Array:
        """The three branches for q, k and v of x, mixed and projected back to (B,T,width)."""
        length, stride = self.branches[:2]
        compressed = tuple(
            phi(runs.runs(project(x), length, stride))
            for phi, project in zip(self.compress, self.compressed, strict=True)
        )
        local = tuple(project(x) for project in self.local)
        out = self.op(q, k, v, self.gates(x), compressed=compressed, local=local)
        return self.finish(x, out, edit)

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """x (B,T,width) to (B,T,width); it takes no context."""
        if context is not None:
            raise ValueError("NativeSparse: context is given, expected None: it is causal over x")
        return super().__call__(x)
