"""Networks through fewer vectors than tokens: the Perceiver, and the parameters of agents."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax.nn.attention import Attention
from attnjax.ops.low_rank.agent import agent_attention, place_bias
from attnjax.ops.low_rank.perceiver import perceiver_attention

PAPERS = (16, 228)

_small = nnx.initializers.truncated_normal(0.02)


class Perceiver(nnx.Module):
    """A classifier of any input: x (B,S,inputs) -> (B,classes), time O(S L + layers L^2) a round.

        z = latents (L,width), learned
        `rounds` times:  z <- read(z, x),  then `layers` times  z <- think(z)
        out = mean over latents of z, projected

    Both steps are z + attention(norm(z)) and z + mlp(norm(z)); reading has one head, thinking
    `heads`.  The first round has weights of its own, the others share theirs: a recurrent network.
    Inputs carry their places as features, see `ops.low_rank.fourier_features`; their order is of no
    account.

    Paper: Jaegle et al., "Perceiver", 2021, arXiv:2103.03206, section 3.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        rngs: nnx.Rngs,
        latents: int = 512,
        width: int = 1024,
        heads: int = 8,
        layers: int = 6,
        rounds: int = 8,
    ):
        if rounds < 1:
            raise ValueError(f"rounds: got {rounds}, expected at least 1")
        one = lambda: nnx.List(
            [_Step(width, 1, rngs, inputs), *(_Step(width, heads, rngs) for _ in range(layers))]
        )
        self.latents = nnx.Param(_small(rngs.params(), (latents, width)))
        self.first, self.others = one(), one() if rounds > 1 else None
        self.rounds = rounds
        self.out = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B,S,inputs) to logits (B,classes)."""
        z = jnp.broadcast_to(self.latents[...], (x.shape[0], *self.latents.shape))
        for i in range(self.rounds):
            read, *think = self.others if i and self.others is not None else self.first
            z = read(z, x)
            for step in think:
                z = step(z)
        return self.out(z.mean(axis=1))


class _Step(nnx.Module):
    """z + attention(norm(z)), to z or to an input of another width, then z + mlp(norm(z))."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, inputs: int | None = None):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, attend=perceiver_attention, rngs=rngs)
        self.input_norm = None if inputs is None else nnx.LayerNorm(inputs, rngs=rngs)
        if inputs is not None:
            for name in ("k", "v"):
                sizes = (heads, width // heads)
                into = nnx.LinearGeneral(inputs, sizes, use_bias=False, rngs=rngs)
                setattr(self.attention, name, into)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, width, rngs=rngs)
        self.down = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, z: jax.Array, x: jax.Array | None = None) -> jax.Array:
        context = None if self.input_norm is None else self.input_norm(x)
        z = z + self.attention(self.norm(z), context)
        return z + self.down(jax.nn.gelu(self.up(self.mlp_norm(z))))


class Agents(nnx.Module):
    """`attend` of a layer: agent attention on a grid, with its biases and its convolution.

    shape    the grid of the tokens      agents  that of the agents
    blocks   numbers that the smooth part of a bias has along each axis
    width    of the convolution's kernel
    """

    def __init__(
        self,
        shape: Sequence[int],
        heads: int,
        head_width: int,
        *,
        rngs: nnx.Rngs,
        agents: Sequence[int] = (7, 7),
        blocks: Sequence[int] = (7, 7),
        width: int = 3,
    ):
        make = lambda *sizes: nnx.Param(_small(rngs.params(), sizes))
        bias = lambda: nnx.List(
            [make(heads, math.prod(agents), *sizes) for sizes in (blocks, *((n,) for n in shape))]
        )
        self.shape, self.agents = tuple(shape), tuple(agents)
        self.of_keys, self.of_queries = bias(), bias()
        self.kernel = make(*(width for _ in shape), heads, head_width)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        b1, b2 = (place_bias(*(x[...] for x in part)) for part in (self.of_keys, self.of_queries))
        return agent_attention(
            q, k, v, shape=self.shape, agents=self.agents,
            biases=(b1, jnp.swapaxes(b2, 1, 2)), kernel=self.kernel[...],
        )  # fmt: skip
