"""Layers of attention without one of its principles fail alone, and recover beside full attention.

    python -m experiments.theory.deconstructed

  Xue, Moosavi and Aletras 2025, "Deconstructing Attention: Investigating Design Principles for
      Effective Language Modeling", arXiv:2510.11602: of 500M parameters, all layers replaced raise
      the perplexity of 38.1 to 993 without mixing of tokens, 48 where exp is a polynomial, 9e4 with
      scores of keys alone, 85 and 79 with maps that do not depend on the input; where every second
      layer is full attention, all are between 38.5 and 46.

Bytes of Python's library.  "mlp" has silu(q) * k in the place of attention, which mixes no tokens;
"polynomial" the Taylor series of exp to the second power; "keys alone" exp of one number a token,
silu(q_j) . k_j / sqrt(H), over its sum; "of noise" and "of a text" the maps that the model itself,
as trained so far, has for one fixed random sequence and one fixed text, which go through all layers
below, too.  Hybrids have full attention in every second layer, from the second.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import attend, lab, masks, normalizers
from attnjax.lab import Claim, Need, Task, above, below, of, tasks
from attnjax.ops.linear_recurrent import exponential_attention

PAPERS = (6,)


@dataclass(frozen=True)
class Config(lab.TextConfig):
    width: int = 32
    depth: int = 4
    heads: int = 2
    length: int = 48
    steps: int = 500
    batch: int = 12
    simple: tuple[str, ...] = ("mlp", "polynomial", "keys alone", "of noise", "of a text")
    results: Path = Path("results/deconstructed")


QUICK = replace(Config(), seeds=1, depth=2, steps=100, length=24, judged=32,
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


def studied(c: Config) -> dict[str, Task]:
    text = tasks.Bytes.of(c)
    shape = lab.Shape(c.width, c.depth, c.heads, c.length)
    shown = jnp.asarray(text.held[0][:1, :-1])

    def made(name, mixers):
        def make(seed):
            model = lab.TinyLM(shape, mixers, rngs=nnx.Rngs(seed))
            if name not in ("of noise", "of a text"):
                return model
            noise = 0.1 * jax.random.normal(jax.random.key(seed), (c.length, c.width))
            return Fixed(model, shown, noise if name == "of noise" else None)

        return make

    arms = {"full": made("full", full)}
    for name in c.simple:
        op = SIMPLE[name]
        arms[name] = made(name, op)
        arms[f"{name}, hybrid"] = made(name, (op, full))
    return {"text": Task(text.batch, tasks.next_byte, text.held, c.steps, arms, "nats per byte")}


TOLD = {  # the perplexity of 500M parameters, and what a loss is here at least, in nats
    "mlp": ("993", 0.2),
    "polynomial": ("47.9", 0.02),
    "keys alone": ("9e4", 0.2),
    "of noise": ("84.8", 0.1),
    "of a text": ("79.1", 0.1),
}


def claims(c: Config) -> tuple[Claim, ...]:
    loses = lambda arm: of(arm, "nats") - of("full", "nats")
    told = {name: TOLD[name] for name in c.simple}
    return (
        *(Claim(f"{name}: in all layers it loses {least} nats at least", f"{words} for 38.1",
                loses(name), above(least)) for name, (words, least) in told.items()),
        *(Claim(f"{name}: a hybrid gets back three quarters of that", "38.5 to 46",
                loses(f"{name}, hybrid") / loses(name), below(0.25),
                (Need("in all layers it loses", loses(name), above(least / 2)),))
          for name, (_, least) in told.items()),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
