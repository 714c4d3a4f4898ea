"""Small transformers for experiments: one stack of pre-norm blocks, a language model, a ViT.

Both return `(output, intermediates)`: a dict of arrays by name, stacked over layers, so that probes
need no hooks.  XLA drops what nobody reads.

    q, k, v     (depth, B, T, heads, head width)
    attention   (depth, B, T, width)       what each attention adds to the residual stream
    mlp         (depth, B, T, width)       what each MLP adds
    residual    (depth + 1, B, T, width)   the stream: the embedding, then after every block
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import decode
from attnjax.nn.attention import Attend, Attention
from attnjax.nn.decoding import Make, advance, begin
from attnjax.nn.recurrent import Recipe, Recurrent
from attnjax.typing import Array

Edit = Callable[[str, jax.Array], jax.Array]
Gate = Callable[..., Callable[[jax.Array], jax.Array]]


@dataclass(frozen=True)
class Layer:
    """A mixer with projections of its own: `make(width, heads, gate=, rngs=)` gives the module.

    The module has `project` and `combine`, with its `edit`, as `nn.Attention` has them.
    """

    make: Callable[..., Any]


class Whole(nnx.Module):
    """A layer that is one map of the tokens, x (B,T,width) -> (B,T,width): without heads.

    A subclass has `__call__`; what a block asks of attention follows.
    """

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """It has no queries, keys and values: the tokens stand for them."""
        one_head = x[:, :, None]
        return one_head, one_head, one_head

    def combine(self, x: Array, q: Array, k: Array, v: Array, edit: object = None) -> Array:
        """The layer itself; there are no heads to edit."""
        return self(x)


Mixer = Attend | Recipe | Layer  # what a block mixes its tokens by


class Decoding(NamedTuple):
    """How many tokens there have been, and what each layer keeps of them."""

    count: jax.Array
    caches: tuple[Any, ...]


def for_layers(x: Any, depth: int) -> Sequence[Any]:
    """One for each layer: the same for all, or a sequence of as many."""
    if not isinstance(x, (list, tuple)):
        return (x,) * depth
    if len(x) != depth:
        raise ValueError(f"got {len(x)} values for layers, expected one for all, or {depth}")
    return x


_small = nnx.initializers.normal(0.1)


@dataclass(frozen=True)
class Shape:
    """Sizes of a stack: residual width, blocks, heads, and whether positions are learned."""

    width: int = 64
    depth: int = 4
    heads: int = 4
    length: int = 128
    positions: Literal["learned", "none"] = "learned"


def unedited(name: str, x: jax.Array) -> jax.Array:
    """The edit that changes nothing."""
    return x


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the MLP four times as wide as x."""

    def __init__(self, width: int, heads: int, mixer: Mixer, gate: Gate | None, rngs: nnx.Rngs):
        self.before_attention = nnx.RMSNorm(width, rngs=rngs)
        made = None if gate is None else gate(width, heads, rngs=rngs)
        if isinstance(mixer, Recipe):
            self.attention = Recurrent(width, heads, mixer, gate=made, rngs=rngs)
        elif isinstance(mixer, Layer):
            self.attention = mixer.make(width, heads, gate=made, rngs=rngs)
        else:
            self.attention = Attention(width, heads, attend=mixer, gate=made, rngs=rngs)
        self.before_mlp = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, edit: Edit) -> tuple[jax.Array, dict[str, jax.Array]]:
        normed = edit("attention_input", self.before_attention(x))
        q, k, v = self.attention.project(normed)
        of_heads = functools.partial(edit, "heads")
        attention = edit("attention", self.attention.combine(normed, q, k, v, of_heads))
        x = edit("residual", x + attention)
        hidden = jax.nn.gelu(self.up(edit("mlp_input", self.before_mlp(x))))
        mlp = edit("mlp", self.down(edit("mlp_hidden", hidden)))
        x = edit("residual", x + mlp)
        return x, {"q": q, "k": k, "v": v, "attention": attention, "mlp": mlp, "residual": x}

    def step(self, x: jax.Array, cache: Any, policy: Any) -> tuple[jax.Array, Any]:
        """The next tokens (B,T,width), behind what the cache holds."""
        attention, cache = advance(self.attention, self.before_attention(x), cache, policy)
        x = x + attention
        return x + self.down(jax.nn.gelu(self.up(self.before_mlp(x)))), cache


class Stack(nnx.Module):
    """Position embedding, blocks, and the last norm."""

    def __init__(
        self, shape: Shape, mixers: Mixer | Sequence[Mixer], gate: Gate | None, rngs: nnx.Rngs
    ):
        learned = shape.positions == "learned"
        size = (1, shape.length, shape.width)
        self.positions = nnx.Param(_small(rngs.params(), size)) if learned else None
        cycle = itertools.cycle(mixers if isinstance(mixers, Sequence) else (mixers,))
        self.blocks = nnx.List(
            [Block(shape.width, shape.heads, next(cycle), gate, rngs) for _ in range(shape.depth)]
        )
        self.norm = nnx.RMSNorm(shape.width, rngs=rngs)

    def __call__(
        self, x: jax.Array, edit: Edit, positions: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if self.positions is not None:
            table = self.positions[...]
            x = x + (
                table[:, : x.shape[1]] if positions is None else jnp.take(table, positions, axis=1)
            )
        x = embedding = edit("embedding", x)
        seen = []
        for index, block in enumerate(self.blocks):
            x, named = block(x, lambda name, a, i=index: edit(f"{i}.{name}", a))
            seen.append(named)
        stacked = {name: jnp.stack([each[name] for each in seen]) for name in seen[0]}
        stacked["residual"] = jnp.concatenate([embedding[None], stacked["residual"]])
        return edit("output", self.norm(x)), stacked

    def step(
        self, x: jax.Array, state: Decoding, policies: Sequence[Any]
    ) -> tuple[jax.Array, Decoding]:
        """The next tokens (B,T,width), behind those of the state."""
        T, caches = x.shape[1], []
        if self.positions is not None:
            x = x + jnp.take(self.positions[...], state.count + jnp.arange(T), axis=1)
        for block, cache, policy in zip(self.blocks, state.caches, policies, strict=True):
            x, cache = block.step(x, cache, policy)
            caches.append(cache)
        return self.norm(x), Decoding(state.count + T, tuple(caches))


class TinyLM(nnx.Module):
    """Predicts a token at every position: (B,T) int32 -> logits (B,T,vocab), and intermediates.

    `attend(q, k, v)` decides everything about attention, causality included; so does an
    `nn.Recipe`, or a `Layer`.  Of several, blocks take one after the other, again and again: a
    hybrid stack.
    `gate(width, heads, rngs=)` makes a gate on the heads' outputs, such as `nn.HeadGate`, for every
    block.
    """

    def __init__(
        self,
        shape: Shape,
        attend: Mixer | Sequence[Mixer],
        *,
        rngs: nnx.Rngs,
        gate: Gate | None = None,
        vocab: int = 256,
    ):
        self.embed = nnx.Embed(vocab, shape.width, embedding_init=_small, rngs=rngs)
        self.stack = Stack(shape, attend, gate, rngs)
        self.head = nnx.Linear(shape.width, vocab, use_bias=False, kernel_init=_small, rngs=rngs)

    def __call__(
        self, tokens: jax.Array, edit: Edit = unedited, *, positions: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`edit(name, x)` may replace what flows: '0.heads', '3.residual', 'output' and so on.

        Names are 'embedding', 'output' and of each block 'attention_input', 'heads' (B,T,N,H), just
        before their projection, 'attention', 'mlp_input', 'mlp_hidden', 'mlp', and 'residual',
        twice.  `probes.edits` makes edits.

        `positions` (T,) says where in the text the tokens stand, 0 .. T-1 if None; one beyond
        `shape.length` gives NaN.
        """
        x, seen = self.stack(self.embed(tokens), edit, positions)
        return self.head(x), seen

    def start(
        self, B: int, length: int, caches: Make | Sequence[Make] = decode.Dense.empty
    ) -> Decoding:
        """The state before the first of at most `length` tokens of B texts.

        caches(B, length, K, H) makes the cache of a layer of attention; or one such for each layer.
        """
        blocks = self.stack.blocks
        shape = B, length, self.embed.features
        kept = zip(blocks, for_layers(caches, len(blocks)), strict=True)
        caches = tuple(begin(block.attention, shape, make) for block, make in kept)
        return Decoding(jnp.zeros((), jnp.int32), caches)

    def step(
        self, tokens: jax.Array, state: Decoding, policies: Any = None
    ) -> tuple[jax.Array, Decoding]:
        """The logits (B,T,vocab) of the next T tokens, and the state behind them.

        One call or many: the same as of the whole text, for layers that are causal.  `policies` is
        a `decode.Policy`, or one for each layer; layers of other kinds have nothing to drop.
        """
        each = for_layers(policies, len(self.stack.blocks))
        x, state = self.stack.step(self.embed(tokens), state, each)
        return self.head(x), state


class TinyViT(nnx.Module):
    """Classifies images: (B,height,width) floats -> logits (B,classes), and intermediates.

    Square patches of `patch` pixels are the tokens, row by row; their outputs are averaged.
    `shape.length` is the number of patches.
    """

    def __init__(
        self,
        shape: Shape,
        attend: Mixer | Sequence[Mixer],
        *,
        rngs: nnx.Rngs,
        gate: Gate | None = None,
        patch: int = 2,
        classes: int = 10,
    ):
        self.patch = patch
        self.embed = nnx.Linear(patch * patch, shape.width, rngs=rngs)
        self.stack = Stack(shape, attend, gate, rngs)
        self.head = nnx.Linear(shape.width, classes, rngs=rngs)

    def __call__(
        self, images: jax.Array, edit: Edit = unedited
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, seen = self.stack(self.embed(patches(images, self.patch)), edit)
        return self.head(x.mean(1)), seen


def patches(images: jax.Array, size: int) -> jax.Array:
    """(B,height,width) -> (B, height/size * width/size, size * size), row by row."""
    B, height, width = images.shape
    grid = images.reshape(B, height // size, size, width // size, size)
    return grid.transpose(0, 1, 3, 2, 4).reshape(B, -1, size * size)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] in nats, float32: (..., classes), (...) -> (...)."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]
