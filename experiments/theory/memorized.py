"""What a layer of attention memorizes grows with its heads and with the tokens that they see.

    python -m experiments.theory.memorized

  Mahdavi, Liao and Thrampoulidis 2023, "Memorization Capacity of Multi-Head Attention in
      Transformers", arXiv:2306.02010: a layer of H heads whose queries see n < d tokens memorizes
      on the order of H n examples, H (n - 1) + 1 at least; what fits in experiments grows in a line
      with H, and with n until n reaches d.

A query and n tokens, all random, and a random label for each example; the whole set is a batch, and
what is judged is the loss on it.  Values have one number for each head, as in the paper, and a
linear map reads those of the query.  "left" is the share of the variance of labels that is
not memorized.  "few" are H (n - 1) + 1 examples, of the middle numbers of heads and tokens.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, lab
from attnjax.lab import Claim, Need, Task, below, between, of, tasks

PAPERS = (290,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 16  # d, of tokens, queries and keys
    heads: tuple[int, ...] = (4, 8, 16)  # with the third number of tokens
    tokens: tuple[int, ...] = (1, 4, 8, 12)  # with the second number of heads
    examples: int = 384
    steps: int = 1500
    learning_rate: float = 1e-2
    results: Path = Path("results/memorized")

    @property
    def few(self) -> int:
        return self.heads[1] * (self.tokens[2] - 1) + 1


QUICK = replace(Config(), seeds=1, heads=(2, 4, 8), tokens=(1, 2, 4, 6), examples=64, width=8,
                steps=200)  # fmt: skip


class Memory(nnx.Module):
    """sum_h o_h softmax(q . k / sqrt(d)) (tokens . v_h), of a query that does not see itself."""

    def __init__(self, heads: int, width: int, *, rngs: nnx.Rngs):
        into = lambda size: nnx.LinearGeneral(width, (heads, size), use_bias=False, rngs=rngs)
        self.q, self.k, self.v = into(width), into(width), into(1)
        self.out = nnx.Linear(heads, 1, rngs=rngs)

    def __call__(self, query: jax.Array, tokens: jax.Array) -> jax.Array:
        read = attend(self.q(query[:, None]), self.k(tokens), self.v(tokens))
        return self.out(read[:, 0, :, 0])[:, 0]


def examples(count: int, n: int, width: int):
    """(seed, step) -> queries, tokens and labels, always the same: models differ by seeds."""
    draw = np.random.default_rng((n, count))
    parts = ((count, width), (count, n, width), (count,))
    drawn = tuple(draw.standard_normal(shape).astype(np.float32) for shape in parts)
    return lambda seed, step: drawn


def look(model: Memory, batch: tasks.Batch) -> tasks.Scores:
    query, tokens, labels = (jnp.asarray(x) for x in batch)
    left = jnp.square(model(query, tokens) - labels).mean() / jnp.var(labels)
    return {"left": left}


def studied(c: Config) -> dict[str, Task]:
    optimizer = lab.Optimizer(c.steps, c.learning_rate, weight_decay=0.0)

    def task(n, heads, count=c.examples):
        batch = examples(count, n, c.width)
        model = lambda h: lambda seed: Memory(h, c.width, rngs=nnx.Rngs(seed))
        arms = {f"{h} heads": model(h) for h in heads}
        return Task(batch, look, batch(0, 0), c.steps, arms, "share left", optimizer)

    middle, few = c.heads[1:2], (max(1, c.heads[0] // 2), c.heads[1])
    found = {f"{n} tokens": task(n, c.heads if n == c.tokens[2] else middle) for n in c.tokens}
    return found | {"few": task(c.tokens[2], few, c.few)}


def claims(c: Config) -> tuple[Claim, ...]:
    (low, mid, high), (one, less, tokens, more) = c.heads, c.tokens
    left = lambda n, heads: of(f"{n} tokens: {heads} heads", "left")
    few = lambda heads: of(f"few: {heads} heads", "left")
    rises = left(tokens, mid) - left(tokens, high)
    return (
        Claim(f"{c.few} examples, of {mid} heads and {tokens} tokens, are memorized",
              "H (n - 1) + 1", few(mid) / few(max(1, low // 2)), below(0.05),
              (Need("all but a hundredth is", few(mid), below(0.01)),)),
        Claim(f"{high} heads leave less than {mid}", "grows with H",
              left(tokens, high) / left(tokens, mid), below(0.9)),
        Claim("twice the heads add twice as much the next time", "in a line",
              rises / (left(tokens, low) - left(tokens, mid)), between(1.5, 2.5),
              (Need(f"{mid} heads leave less than {low}",
                    left(tokens, mid) / left(tokens, low), below(0.95)),)),
        *(Claim(f"of {n} tokens less is left than of {m}", says, left(n, mid) / left(m, mid),
                below(0.95)) for m, n, says in (
                    (tokens, more, "grows with n"), (less, tokens, "grows with n"),
                    (one, less, "no gain for n = 1"))),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
