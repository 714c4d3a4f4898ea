"""Layers of one learned query, which are recurrent networks, are as good as a Transformer's.

    python -m experiments.core.aaren

  Feng et al. 2024, "Attention as an RNN", arXiv:2405.13956: Aaren, whose query is a learned vector
      and no token's, is comparable to Transformers on 38 data sets of reinforcement learning,
      events, time series and their classification, with a state of constant size.

"series": the next value of two sines with noise, in steps; "digits": scikit-learn's digits pixel by
pixel, of which all outputs are averaged.  All layers are causal.  "blind" sees its own token alone:
what attention is worth.  Aaren has one query for each layer and head here; the paper passes one
token through all layers.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from attnjax import attend, lab, masks
from attnjax.lab import Claim, Need, Task, above, below, of, tasks
from attnjax.ops.softmax_core import prefix_attention

PAPERS = (312,)

SIDE = 8  # of an image of one-pixel patches


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 32
    depth: int = 2
    heads: int = 4
    length: int = 48  # values of a series
    levels: int = 32  # that values are rounded to
    steps: int = 500
    batch: int = 32
    results: Path = Path("results/aaren")


QUICK = replace(Config(), seeds=1, depth=1, steps=100, length=24)


class Query(nnx.Module):
    """Attention of one learned query of each head to every prefix; queries of tokens are unread."""

    def __init__(self, heads: int, width: int, *, rngs: nnx.Rngs):
        self.query = nnx.Param(rngs.params.normal((heads, width)))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return prefix_attention(k, v, self.query[...])


def series(count: int, length: int, levels: int):
    """(seed, step) -> (count, length + 1) levels of two sines of any phases, periods 4 to 32."""

    def batch(seed: int, step: int) -> tasks.Batch:
        draw = np.random.default_rng((seed, step))
        period = np.exp(draw.uniform(np.log(4), np.log(32), (count, 2, 1)))
        phase, size = draw.random((count, 2, 1)), draw.uniform(0.3, 1, (count, 2, 1))
        x = (size * np.sin(2 * np.pi * (np.arange(length + 1) / period + phase))).sum(1)
        x = x + 0.05 * draw.standard_normal(x.shape)
        return (np.clip((x + 2) / 4 * levels, 0, levels - 1).astype(np.int32),)

    return batch


def mixers(c: Config, rngs: nnx.Rngs) -> dict[str, lab.Mixer | list[lab.Mixer]]:
    queries = [Query(c.heads, c.width // c.heads, rngs=rngs) for _ in range(c.depth)]
    return {
        "transformer": functools.partial(attend, mask=masks.causal),
        "aaren": list(queries),
        "blind": functools.partial(attend, mask=masks.window(0, 0)),
    }


def studied(c: Config) -> dict[str, Task]:
    shape = lambda length: lab.Shape(c.width, c.depth, c.heads, length)

    def reader(name, seed):
        rngs = nnx.Rngs(seed)
        mixer = mixers(c, rngs)[name]
        return lab.TinyLM(shape(c.length), mixer, vocab=c.levels, rngs=nnx.Rngs(seed))

    def viewer(name, seed):
        rngs = nnx.Rngs(seed)
        mixer = mixers(c, rngs)[name]
        return lab.TinyViT(shape(SIDE * SIDE), mixer, patch=1, rngs=nnx.Rngs(seed))

    arms = lambda make: {n: functools.partial(make, n) for n in ("transformer", "aaren", "blind")}
    drawn = lambda count: series(count, c.length, c.levels)
    images, held = tasks.handwriting(c.batch)
    return {
        "series": Task(drawn(c.batch), tasks.next_byte, drawn(c.judged)(tasks.HELD, 0), c.steps,
                       arms(reader), "nats per value"),
        "digits": Task(images, tasks.labels, held, c.steps, arms(viewer), "nats per image"),
    }  # fmt: skip


def claims(c: Config) -> tuple[Claim, ...]:
    nats = lambda arm: of(f"series: {arm}", "nats")
    right = lambda arm: of(f"digits: {arm}", "accuracy")
    return (
        Claim("series: Aaren loses a tenth at most of what a Transformer gains", "comparable",
              (nats("aaren") - nats("transformer")) / (nats("blind") - nats("transformer")),
              below(0.1),
              (Need("the past helps", nats("blind") - nats("transformer"), above(0.3)),)),
        Claim("digits: as accurate as a Transformer", "comparable",
              right("transformer") - right("aaren"), below(0.02),
              (Need("other pixels help", right("transformer") - right("blind"), above(0.05)),)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
