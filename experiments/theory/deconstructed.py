"""Layers of attention without one of its principles fail alone, and recover beside full attention.

    python -m experiments.theory.deconstructed

  Xue, Moosavi and Aletras 2025, "Deconstructing Attention: Investigating Design Principles for
      Effective Language Modeling", arXiv:2510.11602: of 500M parameters, all layers replaced raise
      the perplexity of 38.1 to 993 without mixing of tokens, 48 where exp is a polynomial, 9e4 with
      scores of keys alone, 85 and 79 with maps that do not depend on the input; where every second
      layer is full attention, all are between 38.5 and 46.

Tokens bind a key and a value each, and keys are asked for their values: that takes a look from one
token at another, which bytes of a text, at this size, are predicted as well without.  "mlp" has
silu(q) * k in the place of attention, which mixes no tokens; "polynomial" the Taylor series of exp
to the second power; "keys alone" exp of one number a token, silu(q_j) . k_j / sqrt(H), over its
sum; "of noise" and "of a text" the maps that the model itself, as trained so far, has for one fixed
random sequence and one fixed text, which go through all layers below, too.  Hybrids have full
attention in every second layer, from the second.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, lab, masks, normalizers
from attnjax.lab import Claim, Need, Task, above, of, tasks
from attnjax.ops.linear_recurrent import exponential_attention

PAPERS = (6,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 32
    depth: int = 4
    heads: int = 2
    pairs: int = 6
    keys: int = 8  # and as many values
    steps: int = 300
    batch: int = 32
    judged: int = 256
    simple: tuple[str, ...] = ("mlp", "polynomial", "keys alone", "of noise", "of a text")
    results: Path = Path("results/deconstructed")


QUICK = replace(Config(), seeds=1, depth=2, steps=100, judged=32, pairs=2,
                simple=("mlp", "of noise"))  # fmt: skip

full = functools.partial(attend, mask=masks.causal)


def unmixed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.silu(q) * k


def of_keys(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    score = (jax.nn.silu(q) * k).sum(-1, keepdims=True) / jnp.sqrt(q.shape[-1])
    return exponential_attention(jnp.zeros_like(score), score, v)


def of_first(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The map of the first example for all."""
    return full(jnp.broadcast_to(q[:1], q.shape), jnp.broadcast_to(k[:1], k.shape), v)


class Fixed(nnx.Module):
    """A model of texts behind a fixed one, which is not judged; or behind noise in its place."""

    def __init__(self, model: lab.TinyLM, text: jax.Array, noise: jax.Array | None):
        self.model, self.text = model, nnx.Variable(text)
        self.noise = None if noise is None else nnx.Variable(noise)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, dict]:
        T = tokens.shape[1]
        rows = jnp.concatenate([self.text[...][:, :T], tokens])

        def edit(name: str, x: jax.Array) -> jax.Array:
            if self.noise is None or name != "embedding":
                return x
            return x.at[0].set(self.noise[...][:T])

        logits, seen = self.model(rows, edit)
        return logits[1:], seen


SIMPLE: dict[str, lab.Mixer] = {
    "mlp": unmixed,
    "polynomial": functools.partial(full, normalizer=normalizers.taylor(2)),
    "keys alone": of_keys,
    "of noise": of_first,
    "of a text": of_first,
}


def paired(count: int, pairs: int, keys: int):
    """(seed, step) -> tokens of a key and a value each, and keys, whose values are the answers."""

    def batch(seed: int, step: int) -> tasks.Batch:
        draw = np.random.default_rng((seed, step))
        key = draw.random((count, keys)).argsort(1)[:, :pairs]
        value = draw.integers(0, keys, (count, pairs))
        order = draw.random((count, pairs)).argsort(1)
        asked = keys * keys + np.take_along_axis(key, order, 1)
        tokens = np.concatenate([key * keys + value, asked], axis=1).astype(np.int32)
        wanted = np.zeros_like(tokens)
        wanted[:, pairs:] = np.take_along_axis(value, order, 1)
        return tokens, wanted, np.broadcast_to(np.arange(2 * pairs) >= pairs, tokens.shape)

    return batch


def studied(c: Config) -> dict[str, Task]:
    asked = paired(c.judged, c.pairs, c.keys)(tasks.HELD, 0)
    shape = lab.Shape(c.width, c.depth, c.heads, 2 * c.pairs)

    def made(name, mixers):
        def make(seed):
            model = lab.TinyLM(shape, mixers, vocab=c.keys * (c.keys + 1), rngs=nnx.Rngs(seed))
            if name not in ("of noise", "of a text"):
                return model
            noise = 0.1 * jax.random.normal(jax.random.key(seed), (shape.length, c.width))
            return Fixed(model, jnp.asarray(asked[0][:1]), noise if name == "of noise" else None)

        return make

    arms = {"full": made("full", full)}
    for name in c.simple:
        op = SIMPLE[name]
        arms[name] = made(name, op)
        arms[f"{name}, hybrid"] = made(name, (op, full))
    batch = paired(c.batch, c.pairs, c.keys)
    return {"pairs": Task(batch, tasks.answers, asked, c.steps, arms, "nats per answer")}


TOLD = {"mlp": "993", "polynomial": "47.9", "keys alone": "9e4", "of noise": "84.8",
        "of a text": "79.1"}  # fmt: skip


def claims(c: Config) -> tuple[Claim, ...]:
    more = lambda one, other: of(one, "accuracy") - of(other, "accuracy")
    learned = Need("full attention answers", of("full", "accuracy"), above(0.9))
    told = {name: f"{TOLD[name]} for 38.1" for name in c.simple}
    loses = {name: words for name, words in told.items() if name != "polynomial"}
    return (
        *(Claim(f"{name}, in all layers, answers two fifths less", words, more("full", name),
                above(0.4), (learned,)) for name, words in loses.items()),
        *(Claim("a polynomial, in all layers, answers two fifths more than an MLP", words,
                more(name, "mlp"), above(0.4), (learned,))
          for name, words in told.items() if name not in loses),
        *(Claim(f"{name}, beside full attention, answers two fifths more", "38.5 to 46",
                more(f"{name}, hybrid", name), above(0.4), (learned,)) for name in loses),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
