"""Encoders with hard attention: a single key is enough for star-free languages, not for majority.

    python -m experiments.core.languages

  Barcelo et al. 2023, "Logical Languages Accepted by Transformer Encoders with Hard Attention",
      arXiv:2310.03817: encoders whose queries read one key of the largest score (unique hard
      attention) accept all languages of first-order logic with any numerical predicates, and are
      confined to AC0; where all keys of the largest score are averaged they also count.

Encoders written by hand, and all strings of up to `longest` letters.  An encoder is one or two
layers of attention with its positions and a test at the end, and is run with leftmost, rightmost
and averaging hard attention.  "accuracy" is the share of strings that it decides rightly, at the
length at which that is lowest, "mean" that of all lengths.  That no other encoder of single keys
decides majority is the paper's theorem, of which nothing is seen here.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import lab
from attnjax.lab import Arm, Claim, Need, Task, above, between, of, tasks
from attnjax.ops import softmax_core as ops

PAPERS = (260,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    longest: int = 12  # letters; strings of all lengths from 2
    results: Path = Path("results/languages")


QUICK = replace(Config(), seeds=1, longest=6)

HARD = {
    "leftmost": ops.leftmost_hard_attention,
    "rightmost": ops.rightmost_hard_attention,
    "average": ops.average_hard_attention,
}
Read = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def read(op: Callable, score: jax.Array, value: jax.Array) -> jax.Array:
    """What a query reads that scores keys by `score` (B,T), of `value` (B,T): (B,)."""
    keys, values = (x.astype(jnp.float32)[..., None, None] for x in (score, value))
    return op(jnp.ones_like(keys[:, :1]), keys, values)[:, 0, 0, 0]


def before(op: Callable, x: jax.Array) -> jax.Array:
    """The letter before each, 0 for the first: a query scores -|j - (i - 1)|^2 by q . k."""
    B, T = x.shape
    places = jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32), (B, T))
    q = jnp.stack([2 * (places - 1), jnp.ones_like(places)], -1)[:, :, None]
    k = jnp.stack([places, -places * places], -1)[:, :, None]
    got = op(q, k, x.astype(jnp.float32)[..., None, None])[..., 0, 0]
    return jnp.where(places == 0, 0.0, got)


# Each takes attention and strings (B,T) of 0 and 1, and accepts where it gives True.
ENCODERS = {
    "contains 11": lambda op, x: read(op, x * before(op, x), x * before(op, x)) > 0.5,
    "begins as it ends": lambda op, x: (
        read(op, -jnp.arange(x.shape[1]) + 0 * x, x) == read(op, jnp.arange(x.shape[1]) + 0 * x, x)
    ),
    "more 1 than 0": lambda op, x: read(op, 0 * x, x) > 0.5,
    "as many 1 as 0": lambda op, x: read(op, 0 * x, x) == 0.5,
}
TRUTH = {
    "contains 11": lambda s: "11" in s,
    "begins as it ends": lambda s: s[0] == s[-1],
    "more 1 than 0": lambda s: 2 * s.count("1") > len(s),
    "as many 1 as 0": lambda s: 2 * s.count("1") == len(s),
}


def strings(longest: int) -> dict[int, np.ndarray]:
    """All strings of 0 and 1 by length."""
    every = lambda n: (np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1
    return {n: every(n).astype(np.float32) for n in range(2, longest + 1)}


def decided(language: str, model: "Encoder", batch: tasks.Batch) -> tasks.Scores:
    op = HARD[model.name]
    found = []
    for x in batch[: len(batch) // 2]:
        truth = batch[len(batch) // 2 + len(found)]
        right = (ENCODERS[language](op, jnp.asarray(x)) == truth).mean()
        found.append(right)
    return {"accuracy": jnp.stack(found).min(), "mean": jnp.stack(found).mean()}


class Encoder(nnx.Module):
    """Nothing is learned: only the kind of attention differs."""

    def __init__(self, name: str):
        self.name = name


def studied(c: Config) -> dict[str, Task]:
    every = strings(c.longest)
    text = lambda row: "".join("01"[int(x)] for x in row)
    found = {}
    for language, accepts in TRUTH.items():
        truth = [np.array([accepts(text(row)) for row in x]) for x in every.values()]
        held = (*every.values(), *truth)
        arms = {name: Arm(lambda seed, name=name: Encoder(name), steps=0) for name in HARD}
        found[language] = Task(lambda seed, step, held=held: held,
                               functools.partial(decided, language), held, 1, arms)  # fmt: skip
    return found


def claims(c: Config) -> tuple[Claim, ...]:
    right = lambda language, name: of(f"{language}: {name}", "accuracy")
    worse = Need("majority is not decided by one key", right("more 1 than 0", "average")
                 - right("more 1 than 0", "leftmost"), above(0.1))  # fmt: skip
    all_of = between(1 - 1e-6, 1 + 1e-6)
    told = [
        (f"{name} hard attention decides {language!r} of all strings", "first-order",
         right(language, name))
        for language in ("contains 11", "begins as it ends") for name in ("leftmost", "rightmost")
    ] + [
        (f"averages decide {language!r} of all strings", "counting", right(language, "average"))
        for language in ("more 1 than 0", "as many 1 as 0")
    ]  # fmt: skip
    return (
        *(Claim(says, paper, quantity, all_of, (worse,), counted=True)
          for says, paper, quantity in told),
        *(Claim(f"the same encoder of a {name} key does not decide 'more 1 than 0'", "not in AC0",
                right("more 1 than 0", "average") - right("more 1 than 0", name), above(0.1),
                counted=True) for name in ("leftmost", "rightmost")),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
