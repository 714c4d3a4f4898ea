"""Normalized attention learns extremes at more settings than softmax, and pooling is a baseline.

    python -m experiments.core.normalized_rows

  Richter and Wattenhofer 2020, "Normalized Attention Without Probability Cage", arXiv:2005.09561:
      softmax confines outputs to the hull of the values, and begins isolated from other tokens or
      averaging them; normalized scores are robust to settings and lengths, and sum and max pooling
      are strong baselines, over 25,000 models.

Distinct numbers as tokens, then a question: for the smallest or for the largest of them, by its
token.  Each model is trained at every learning rate, and claims are of the lowest accuracy over
them; "long" are sequences twice as long as in training.  All layers but those of "softmax" and
"blind", which sees its own token only, have LayerNorm and GELU before the output projection, as the
paper's.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, lab, masks
from attnjax.lab import Claim, Need, Task, above, least, of, tasks
from attnjax.nn import Attention
from attnjax.nn.attention import EditHeads, unedited
from attnjax.ops.softmax_core import normalized_attention
from attnjax.typing import Array

PAPERS = (295,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 32
    depth: int = 2
    heads: int = 2
    places: int = 10  # numbers in training
    values: int = 40  # that they are drawn from
    rates: tuple[float, ...] = (3e-4, 3e-3, 3e-2)  # learning rates
    steps: int = 400
    batch: int = 32
    results: Path = Path("results/normalized_rows")


# two rates: claims are of several, each a task of its own
QUICK = replace(Config(), seeds=1, depth=1, rates=(3e-3, 3e-2), steps=100, places=5)


class Normalized(nnx.Module):
    """Normalized attention with a gain and a bias for each head."""

    def __init__(self, heads: int):
        self.gain, self.bias = nnx.Param(jnp.ones(heads)), nnx.Param(jnp.zeros(heads))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return normalized_attention(q, k, v, self.gain[...], self.bias[...])


class Bent(Attention):
    """LayerNorm and GELU of all heads together, before the projection."""

    def __init__(self, width: int, heads: int, *, attend, gate=None, rngs: nnx.Rngs):
        super().__init__(width, heads, attend=attend, gate=gate, rngs=rngs)
        self.normed = nnx.LayerNorm(width, rngs=rngs)

    def combine(self, x: Array, q: Array, k: Array, v: Array, edit: EditHeads = unedited) -> Array:
        out = self.attend(q, k, v)
        flat = out.reshape(*out.shape[:2], out.shape[2] * out.shape[3])
        return self.o(edit(jax.nn.gelu(self.normed(flat)).reshape(out.shape)))


def bent(make: Callable[[int], nnx.Module | Callable]) -> lab.Layer:
    def layer(width, heads, *, gate, rngs):
        return Bent(width, heads, attend=make(heads), gate=gate, rngs=rngs)

    return lab.Layer(layer)


def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.broadcast_to(v.sum(1, keepdims=True), v.shape)


def largest(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.broadcast_to(v.max(1, keepdims=True), v.shape)


def extremes(count: int, places: int, values: int):
    """(seed, step) -> (tokens, wanted, asked): the last token asks for the smallest or largest."""

    def batch(seed: int, step: int) -> tasks.Batch:
        draw = np.random.default_rng((seed, step, places))
        tokens = draw.random((count, values)).argsort(1)[:, :places].astype(np.int32)
        high = draw.integers(0, 2, count)
        asked = np.concatenate([tokens, values + high[:, None]], axis=1).astype(np.int32)
        wanted = np.zeros_like(asked)
        wanted[:, -1] = np.where(high, tokens.max(1), tokens.min(1))
        return asked, wanted, np.arange(places + 1) == np.full((count, 1), places)

    return batch


ARMS = {
    "blind": functools.partial(attend, mask=masks.window(0, 0)),
    "softmax": attend,
    "softmax, bent": bent(lambda heads: attend),
    "normalized": bent(Normalized),
    "sum": bent(lambda heads: total),
    "max": bent(lambda heads: largest),
}


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, positions="none")
    model = lambda mixer: (
        lambda seed: lab.TinyLM(shape, mixer, vocab=c.values + 2, rngs=nnx.Rngs(seed))
    )
    drawn = functools.partial(extremes, places=c.places, values=c.values)
    longer = extremes(c.judged, 2 * c.places, c.values)
    held = {"": drawn(4 * c.judged)(tasks.HELD, 0), "long": longer(tasks.HELD, 0)}
    arms = {name: model(mixer) for name, mixer in ARMS.items()}
    task = Task(drawn(c.batch), tasks.answers, held, c.steps, arms, "nats per answer")
    return {f"{r:g}": replace(task, optimizer=lab.Optimizer(c.steps, r)) for r in c.rates}


def claims(c: Config) -> tuple[Claim, ...]:
    every = lambda arm, measure="accuracy": [of(f"{r:g}: {arm}", measure) for r in c.rates]
    worst = lambda arm, measure="accuracy": least(*every(arm, measure))
    learned = Need("max pooling reads the numbers", worst("max") - worst("blind"), above(0.1))
    return (  # of the lowest accuracy over the rates
        Claim("at its worst rate normalized attention is more accurate than softmax", "robust",
              worst("normalized") - worst("softmax"), above(0.05)),
        Claim("also than softmax in the same layer", "robust",
              worst("normalized") - worst("softmax, bent"), above(0.05)),
        Claim("at twice the length it is more accurate than softmax, at its worst rate", "robust",
              worst("normalized", "accuracy, long") - worst("softmax", "accuracy, long"),
              above(0.05)),
        Claim("max pooling is as accurate as softmax, at its worst rate", "strong",
              worst("max") - worst("softmax"), above(-0.05), (learned,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
