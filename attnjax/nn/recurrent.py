"""Layers around the causal ops of engine 2: gates read off the input, short convolutions, a cache.

A `Recipe` says what an op needs besides q, k and v (`recipes` has them); `Recurrent` owns the
parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax.core.numerics import rms_norm, wide
from attnjax.core.scan.convolution import causal_conv
from attnjax.nn.attention import Attention, EditHeads, unedited
from attnjax.typing import Array


class Gate(NamedTuple):
    """An argument of an op: of(x W + b), (B,T,N) or with channels (B,T,N,H); b starts at `bias`."""

    of: Callable[[jax.Array], jax.Array]
    bias: float = 0.0
    channels: bool = False


@dataclass(frozen=True, eq=False)  # hashable: a module that holds one is static under jit
class Recipe:
    """How to build a layer around `op(q, k, v, *, state, return_state, **gates, **weights)`.

    gates    argument -> Gate
    weights  argument -> its initial value, (PRNG key, heads, head width) -> array; trained
    conv     tokens that the causal convolution of q, k and v spans; 1 for none
    """

    op: Callable[..., Any]
    gates: Mapping[str, Gate] = field(default_factory=dict)
    weights: Mapping[str, Callable[[jax.Array, int, int], jax.Array]] = field(default_factory=dict)
    conv: int = 4


class Cache(NamedTuple):
    """What a segment leaves for the next: the last inputs of the convolutions, the op's state.

    With documents also the ids (B,conv-1) of these inputs.
    """

    convolved: tuple[jax.Array, ...]
    state: Any
    documents: jax.Array | None = None


class Recurrent(Attention):
    """x -> norm(op(conv(x W_q), conv(x W_k), conv(x W_v), gates(x))) W_o, the norm of each head.

    Sizes as in `Attention`.  `run` carries a cache from segment to segment: a prompt, then one
    token at a time, gives what the whole sequence gives at once.
    """

    def __init__(self, width: int, heads: int, recipe: Recipe, *, rngs: nnx.Rngs, **sizes: Any):
        super().__init__(width, heads, attend=recipe.op, rngs=rngs, **sizes)
        if recipe.conv < 1:
            raise ValueError(f"conv: got {recipe.conv}, expected at least 1 (none)")
        H = self.q.out_features[-1]
        self.recipe = recipe
        # each convolution begins as the identity, with some of the past mixed in
        kernel = lambda layer: nnx.Param(
            jnp.eye(recipe.conv, 1) + 0.1 * rngs.params.normal((recipe.conv, _width(layer)))
        )
        self.convs = nnx.List([kernel(layer) for layer in (self.q, self.k, self.v)])
        bias = lambda gate: nnx.initializers.constant(gate.bias)
        self.gates = nnx.Dict(
            {
                name: nnx.LinearGeneral(
                    width,
                    (heads, H) if gate.channels else (heads,),
                    bias_init=bias(gate),
                    rngs=rngs,
                )
                for name, gate in recipe.gates.items()
            }
        )
        self.weights = nnx.Dict(
            {
                name: nnx.Param(make(rngs.params(), heads, H))
                for name, make in recipe.weights.items()
            }
        )
        self.scale = nnx.Param(jnp.ones((heads, H)))

    def project(
        self, x: jax.Array, context: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q (B,T,N,H), k and v (B,T,K,H), convolved."""
        q, k, v = (y for y, _ in self._convolved(x, context, (None,) * 3, None))
        return q, k, v

    def combine(self, x: Array, q: Array, k: Array, v: Array, edit: EditHeads = unedited) -> Array:
        """The op with its gates, the norm, and the projection back to (B,T,width)."""
        return self._combine(x, q, k, v, None, edit)[0]

    def run(
        self, x: jax.Array, cache: Cache | None = None, *, documents: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """A segment x (B,T,width), from the cache that the one before left; None at the start.

        documents (B,T) are ids of packed texts, see `linear_attend`; where a text begins, at any
        token of any row, nothing is left of those before.  The recipe's op has to take them.

        Raises ValueError for documents beside the cache of a run without them, or the reverse.
        """
        packed = None if documents is None else self._ids(jnp.asarray(documents), cache)
        if documents is None and cache is not None and cache.documents is not None:
            raise ValueError("documents: got none, expected ids as in the run that left the cache")
        before = (None,) * 3 if cache is None else cache.convolved
        (q, of_q), (k, of_k), (v, of_v) = self._convolved(x, None, before, packed)
        state = None if cache is None else cache.state
        more = {} if documents is None else {"documents": documents}
        out, state = self._combine(x, q, k, v, state, unedited, **more)
        last = None if packed is None else packed[:, x.shape[1] :]
        return out, Cache((of_q, of_k, of_v), state, last)

    def _ids(self, documents: jax.Array, cache: Cache | None) -> jax.Array:
        """The ids (B,conv-1+T) of the last inputs before a segment and of its own."""
        before = jnp.full((documents.shape[0], self.recipe.conv - 1), -1, documents.dtype)
        if cache is not None:
            if cache.documents is None:
                raise ValueError("documents: got ids beside the cache of a run without any")
            before = cache.documents
        return jnp.concatenate([before, documents], axis=1)

    def _convolved(self, x, context, before, documents):
        for projected, kernel, earlier in zip(
            super().project(x, context), self.convs, before, strict=True
        ):
            flat = projected.reshape(*projected.shape[:2], -1)
            y, last = causal_conv(flat, kernel[...], earlier, documents)
            yield y.reshape(projected.shape).astype(projected.dtype), last

    def _combine(self, x, q, k, v, state, edit, **more):
        gates = {n: self.recipe.gates[n].of(wide(linear(x))) for n, linear in self.gates.items()}
        weights = {name: w[...] for name, w in self.weights.items()}
        inputs = {**gates, **weights, **more}
        out, state = self.recipe.op(q, k, v, **inputs, state=state, return_state=True)
        out = (rms_norm(wide(out)) * self.scale[...]).astype(out.dtype)
        return self.finish(x, out, edit), state


def _width(layer: nnx.LinearGeneral) -> int:
    heads, width = layer.out_features
    return heads * width
