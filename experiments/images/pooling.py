"""A block that averages its neighbors is within a few points of one with attention.

    python -m experiments.images.pooling

  Yu et al. 2022, "MetaFormer Is Actually What You Need for Vision", arXiv:2111.11418: with average
      pooling in the place of attention a model stays within a few points of it at the same size,
      and above mixers of MLPs (82.1 % on ImageNet beside 81.8 % of DeiT-B); even the identity and
      a fixed random matrix, softmax of uniform numbers, give usable models.

Classifiers of scikit-learn's digits, pixel by pixel: 64 tokens.  All have the same blocks; those of
"pooling", "identity" and "random", whose mixers have no parameters, are wider, so that there are as
many parameters.  Each layer and seed has its own random matrix.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import attend, lab
from attnjax.lab import Claim, Need, Task, below, of, tasks
from attnjax.ops.attention_free import pool_mixer

PAPERS = (332,)

SIDE = 8  # of an image of one-pixel patches


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 32  # with attention
    depth: int = 2
    heads: int = 4
    steps: int = 400
    batch: int = 32
    results: Path = Path("results/pooling")

    @property
    def wider(self) -> int:
        """12 width^2 parameters a block in the 8 width^2 of an MLP, a multiple of the heads."""
        return self.heads * round(math.sqrt(1.5) * self.width / self.heads)


QUICK = replace(Config(), seeds=1, depth=1, steps=150)


class Mixing(lab.Whole):
    """A layer without projections: `mix(x)` of the grid (B,8,8,width)."""

    def __init__(self, mix: Any):
        self.mix = mix

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mix(x.reshape(len(x), SIDE, SIDE, x.shape[-1])).reshape(x.shape)


class Random(nnx.Module):
    """A matrix over the cells that is not learned."""

    def __init__(self, rngs: nnx.Rngs):
        uniform = rngs.params.uniform((SIDE * SIDE, SIDE * SIDE))
        self.weights = nnx.Variable(jax.nn.softmax(uniform, axis=-1))

    def __call__(self, x: jax.Array) -> jax.Array:
        flat = x.reshape(len(x), SIDE * SIDE, x.shape[-1])
        return jnp.einsum("ij,BjW->BiW", self.weights[...], flat).reshape(x.shape)


def mixer(mix: Any) -> lab.Layer:
    """`mix(rngs)` gives what a layer does."""
    make = lambda width, heads, *, gate, rngs: cast(Any, Mixing(mix(rngs)))
    return lab.Layer(make)


def look(model: lab.TinyViT, batch: tasks.Batch) -> tasks.Scores:
    found = tasks.labels(model, batch)
    return found | {"wrong": 1 - found["accuracy"]}


def studied(c: Config) -> dict[str, Task]:
    def model(width, layer):
        shape = lab.Shape(width, c.depth, c.heads, SIDE * SIDE)
        return lambda seed: lab.TinyViT(shape, layer, patch=1, rngs=nnx.Rngs(seed))

    arms = {
        "attention": model(c.width, attend),
        "pooling": model(c.wider, mixer(lambda rngs: pool_mixer)),
        "random": model(c.wider, mixer(Random)),
        "identity": model(c.wider, mixer(lambda rngs: lambda x: x)),
    }
    batch, held = tasks.handwriting(c.batch)
    return {"digits": Task(batch, look, held, c.steps, arms, "nats per image")}


def claims(c: Config) -> tuple[Claim, ...]:
    wrong = lambda arm: of(arm, "wrong")
    mixed = Need("mixing pixels helps", wrong("attention") / wrong("identity"), below(0.7))
    return (
        Claim("pooling is within three points of attention at the same size", "82.1 % beside 81.8",
              wrong("pooling") - wrong("attention"), below(0.03), (mixed,)),
        Claim("pooling makes fewer errors than no mixing, by a tenth of them", "better",
              wrong("pooling") / wrong("identity"), below(0.9)),
        Claim("it makes fewer than a fixed random matrix, by a tenth of them", "better",
              wrong("pooling") / wrong("random"), below(0.9)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
