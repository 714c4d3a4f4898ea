"""Attention to pairs of keys detects triples that attention to single keys does not.

    python -m experiments.theory.triples

  Alman and Song 2023, "How to Capture Higher-order Correlations? Generalizing Matrix Softmax
      Attention to Kronecker Computation", arXiv:2310.04064: softmax over all pairs of keys, whose
      scores are sums of products of three numbers, detects triples, as in Match3 of Sanford et al.
      2023, which one layer of ordinary attention of the same width does not.

Numbers modulo `modulus`; the answer for each is whether it and two others, or the same twice, sum
to zero.  Models see sines and cosines of the numbers, and have one layer of attention and an MLP.
"pairs" is `attend` over the T^2 keys k_a * k'_b with values v_a * v'_b; "single" is softmax
attention, "single, wide" with twice the heads, which are then more parameters than those of
"pairs", "single, deep" with two layers, and "blind" sees its own number only.
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
from attnjax.lab import Claim, Need, Task, above, below, of, tasks

PAPERS = (235,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 64
    heads: int = 4
    tokens: int = 6
    modulus: int = 31
    waves: int = 6  # frequencies of the numbers' sines
    steps: int = 1200
    batch: int = 64
    learning_rate: float = 2e-3
    results: Path = Path("results/triples")


QUICK = replace(Config(), seeds=1, width=16, heads=2, steps=200, tokens=4, modulus=13)


def third(q: jax.Array, k: jax.Array, v: jax.Array, k2: jax.Array, v2: jax.Array) -> jax.Array:
    """out_i = sum_ab softmax_ab(sum_c q_ic k_ac k2_bc / sqrt(H)) (v_a * v2_b)."""
    pairs = lambda x, y: (x[:, :, None] * y[:, None]).reshape(len(x), -1, *x.shape[2:])
    return attend(q, pairs(k, k2), pairs(v, v2))


class Layer(nnx.Module):
    """x + attention(x), then x + MLP(x); a third-order op gets two more projections."""

    def __init__(self, width: int, heads: int, op: Callable, *, H: int, rngs: nnx.Rngs):
        into = lambda: nnx.LinearGeneral(width, (heads, H), use_bias=False, rngs=rngs)
        self.maps = nnx.List([into() for _ in range(5 if op is third else 3)])
        self.out = nnx.LinearGeneral((heads, H), width, axis=(-2, -1), rngs=rngs)
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.up, self.down = (
            nnx.Linear(*sizes, rngs=rngs) for sizes in ((width, 4 * width), (4 * width, width))
        )
        self.op = op

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.out(self.op(*(into(x) for into in self.maps)))
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))


class Model(nnx.Module):
    def __init__(self, c: Config, op: Callable, heads: int, depth: int, *, rngs: nnx.Rngs):
        angle = 2 * np.pi * np.outer(np.arange(c.modulus), np.arange(1, c.waves + 1)) / c.modulus
        self.waves = nnx.Variable(jnp.asarray(np.concatenate([np.cos(angle), np.sin(angle)], 1)))
        self.into = nnx.Linear(2 * c.waves, c.width, rngs=rngs)
        make = lambda: Layer(c.width, heads, op, H=c.width // c.heads, rngs=rngs)
        self.layers = nnx.List([make() for _ in range(depth)])
        self.head = nnx.Linear(c.width, 2, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, dict]:
        x = self.into(self.waves[...][tokens])
        for layer in self.layers:
            x = layer(x)
        return self.head(x), {}


def matches(count: int, tokens: int, modulus: int):
    """(seed, step) -> numbers, whether each is part of a triple, asked everywhere."""

    def batch(seed: int, step: int) -> tasks.Batch:
        x = np.random.default_rng((seed, step)).integers(0, modulus, (count, tokens))
        sums = x[:, :, None, None] + x[:, None, :, None] + x[:, None, None]
        found = (sums % modulus == 0).any((2, 3))
        return x.astype(np.int32), found.astype(np.int32), np.ones_like(found)

    return batch


def studied(c: Config) -> dict[str, Task]:
    model = lambda op, heads=c.heads, depth=1: (
        lambda seed: Model(c, op, heads, depth, rngs=nnx.Rngs(seed))
    )
    arms = {
        "pairs": model(third),
        "single": model(attend),
        "single, wide": model(attend, 2 * c.heads),
        "single, deep": model(attend, depth=2),
        "blind": model(functools.partial(attend, mask=masks.window(0, 0))),
    }
    drawn = functools.partial(matches, tokens=c.tokens, modulus=c.modulus)
    held = drawn(8 * c.judged)(tasks.HELD, 0)
    optimizer = lab.Optimizer(c.steps, c.learning_rate)
    return {"triples": Task(drawn(c.batch), tasks.answers, held, c.steps, arms, "nats per answer",
                            optimizer)}  # fmt: skip


def claims(c: Config) -> tuple[Claim, ...]:
    nats = lambda arm: of(arm, "nats")
    learned = Need("pairs of keys detect triples", nats("pairs") / nats("blind"), below(0.3))
    return (
        Claim("attention to pairs detects triples that single keys do not, at the same width",
              "solves Match3", nats("pairs") / nats("single"), below(0.5), (learned,)),
        Claim("single keys with more parameters do not detect them either", "solves Match3",
              nats("pairs") / nats("single, wide"), below(0.5), (learned,)),
        Claim("a second layer of single keys does not, either", "one layer",
              nats("pairs") / nats("single, deep"), below(0.5), (learned,)),
        Claim("at least a fifth more answers are right than by single keys",
              "solves Match3", of("pairs", "accuracy") - of("single", "accuracy"), above(0.2),
              (learned,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
