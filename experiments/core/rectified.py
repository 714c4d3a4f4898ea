"""Rectified linear attention translates as softmax does, with weights that are zero.

    python -m experiments.core.rectified

  Zhang, Titov and Sennrich 2021, "Sparse Attention with Linear Units", arXiv:2104.07012: relu in
      the place of softmax gives comparable translations; most weights are zero, heads are more
      diverse, some queries attend to nothing, and alignments are closer to those of people.

A made-up language, translated: the source, a bar, and the source backwards in other words, so that
the alignment of each target word is known.  "aligned" is the share of target words at which the
weights of a layer, averaged over heads, are largest at their source word, in the best layer;
"zeros" the share of weights below 1e-6, "nothing" that of queries without any weight, "diversity"
the Jensen-Shannon divergence of heads in nats.  "blind" sees its own token only.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, attention_weights, lab, masks, normalizers
from attnjax.lab import Claim, Need, Task, above, below, of, tasks
from attnjax.ops.softmax_core import rela_gated

PAPERS = (266,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 64
    depth: int = 2
    heads: int = 4
    length: int = 10  # words
    words: int = 24  # of each language
    steps: int = 600
    batch: int = 32
    results: Path = Path("results/rectified")


QUICK = replace(Config(), seeds=1, depth=1, steps=150, length=6)


class Rectified(nnx.Module):
    """Causal `rela_gated`; the gain begins at one, the gate open by half."""

    def __init__(self, heads: int, width: int):
        self.gain = nnx.Param(jnp.ones((heads, width)))
        self.gate = nnx.Param(jnp.zeros((heads, width)))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return rela_gated(q, k, v, self.gain[...], self.gate[...], mask=masks.causal)


def translation(count: int, length: int, words: int):
    """(seed, step) -> (tokens, wanted, asked): the words backwards, each by a fixed dictionary."""
    dictionary = np.random.default_rng(0).permutation(words) + words

    def batch(seed: int, step: int) -> tasks.Batch:
        source = np.random.default_rng((seed, step)).integers(0, words, (count, length))
        bar = np.full((count, 1), 2 * words)
        row = np.concatenate([source, bar, dictionary[source[:, ::-1]]], axis=1).astype(np.int32)
        asked = np.broadcast_to(np.arange(2 * length) >= length, (count, 2 * length))
        return row[:, :-1], row[:, 1:], asked

    return batch


def maps_seen(length: int, weights: jax.Array) -> tasks.Scores:
    """Of the weights (layers,B,N,T,T) of queries that predict a target word, T = 2 length."""
    allowed = masks.causal.dense(2 * length, 2 * length)[length:]
    rows = weights[..., length:, :]
    total = rows.sum(-1, keepdims=True)
    shares = rows / jnp.maximum(total, 1e-9)
    entropy = lambda p: -(p * jnp.log(jnp.maximum(p, 1e-9))).sum(-1)
    apart = entropy(shares.mean(2)) - entropy(shares).mean(2)
    every = (total[..., 0] > 1e-6).all(2)  # heads that attend to nothing are of no direction
    place = shares.mean(2)[..., :length].argmax(-1)
    aligned = (place == jnp.arange(length)[::-1]).mean((1, 2))
    return {
        "aligned": aligned.max(),
        "zeros": ((rows < 1e-6) & allowed).sum() / (allowed.sum() * rows[..., 0, 0].size),
        "nothing": (total < 1e-6).mean(),
        "diversity": jnp.where(every, apart, 0).sum() / every.sum(),
    }


def look(length: int, model: lab.TinyLM, batch: tasks.Batch) -> tasks.Scores:
    seen = model(jnp.asarray(batch[0]))[1]
    kind = model.stack.blocks[0].attention.attend
    relu = normalizers.relu() if isinstance(kind, Rectified) else normalizers.softmax
    weights = functools.partial(attention_weights, mask=masks.causal, normalizer=relu)
    return tasks.answers(model, batch) | maps_seen(length, jax.vmap(weights)(seen["q"], seen["k"]))


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, 2 * c.length)
    model = lambda mixers: (
        lambda seed: lab.TinyLM(shape, mixers(), vocab=2 * c.words + 1, rngs=nnx.Rngs(seed))
    )
    arms = {
        "softmax": model(lambda: functools.partial(attend, mask=masks.causal)),
        "rela": model(lambda: [Rectified(c.heads, c.width // c.heads) for _ in range(c.depth)]),
        "blind": model(lambda: functools.partial(attend, mask=masks.window(0, 0))),
    }
    drawn = lambda count: translation(count, c.length, c.words)
    held = drawn(c.judged)(tasks.HELD, 0)
    score = functools.partial(look, c.length)
    return {"words": Task(drawn(c.batch), score, held, c.steps, arms, "nats per word")}


def claims(c: Config) -> tuple[Claim, ...]:
    more = lambda measure: of("rela", measure) - of("softmax", measure)
    learned = Need("attention translates", of("softmax", "accuracy") - of("blind", "accuracy"),
                   above(0.7))  # fmt: skip
    same = Need("both translate", of("rela", "accuracy") - of("blind", "accuracy"), above(0.7))
    return (
        Claim("relu translates as many words as softmax", "comparable",
              of("softmax", "accuracy") - of("rela", "accuracy"), below(0.02), (learned,)),
        Claim("half of its weights are zero, beyond those of softmax", "high sparsity",
              more("zeros"), above(0.5), (same,)),
        Claim("some queries attend to nothing", "switched off", more("nothing"), above(0.01),
              (same,)),
        Claim("its heads are more diverse", "more diverse", more("diversity"), above(0.1), (same,)),
        Claim("its alignments are better", "better", more("aligned"), above(0.02),
              (same, Need("softmax aligns some words wrongly", of("softmax", "aligned"),
                          below(0.98)))),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
