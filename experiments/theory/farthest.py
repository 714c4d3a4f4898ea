"""A head of full rank finds the farthest point, which many heads of low rank do not.

    python -m experiments.theory.farthest

  Amsel, Yehudai and Bruna 2024, "On the Benefits of Rank in Attention Layers", arXiv:2407.16153: a
      head whose queries and keys have full rank finds the nearest point at any number of points;
      heads of low rank have to be exponentially many, even for few points, unless the model is
      deeper, which helps for few.

Points of the unit sphere, each of which is to give the one that is farthest from it; the error is
that of all coordinates, 1 for a guess of zero.  Models are attention with an MLP; heads of rank r
have queries and keys of r numbers and values of the width.  "full" has one head of rank d, "low"
as many parameters of heads of rank `low`, "low, more" four times as many heads, "low, deep" two
layers of the heads of "low".
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, lab
from attnjax.lab import Claim, Need, Task, above, below, of, tasks

PAPERS = (258,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    dimension: int = 16
    points: int = 8
    low: int = 2  # rank of a head
    hidden: int = 256  # of an MLP
    steps: int = 2000
    batch: int = 64
    results: Path = Path("results/farthest")


QUICK = replace(Config(), seeds=1, steps=150, hidden=32, dimension=8)


class Layer(nnx.Module):
    """x + heads(x), x + MLP(x): queries and keys (r,d) of each head, values (d,d)."""

    def __init__(self, d: int, heads: int, rank: int, hidden: int, *, rngs: nnx.Rngs):
        into = lambda width: nnx.LinearGeneral(d, (heads, width), use_bias=False, rngs=rngs)
        self.q, self.k, self.v = into(rank), into(rank), into(d)
        self.share = 1 / heads
        self.up, self.down = nnx.Linear(d, hidden, rngs=rngs), nnx.Linear(hidden, d, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + attend(self.q(x), self.k(x), self.v(x)).sum(2) * self.share
        return x + self.down(jax.nn.gelu(self.up(x)))


class Model(nnx.Module):
    def __init__(self, c: Config, heads: int, rank: int, depth: int, *, rngs: nnx.Rngs):
        make = lambda: Layer(c.dimension, heads, rank, c.hidden, rngs=rngs)
        self.layers = nnx.List([make() for _ in range(depth)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


def sphere(count: int, points: int, d: int):
    """(seed, step) -> points (count,points,d) and for each the one farthest from it."""

    def batch(seed: int, step: int) -> tasks.Batch:
        draw = np.random.default_rng((seed, step, points))
        x = draw.standard_normal((count, points, d)).astype(np.float32)
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        far = (x @ x.swapaxes(1, 2)).argmin(-1)
        return x, np.take_along_axis(x, far[..., None], axis=1)

    return batch


def look(model: Model, batch: tasks.Batch) -> tasks.Scores:
    x, far = (jnp.asarray(part) for part in batch)
    out = model(x)
    near = jnp.einsum("BTd,BSd->BTS", out, x).argmax(-1)
    right = near == jnp.einsum("BTd,BSd->BTS", far, x).argmax(-1)
    return {"error": jnp.square(out - far).sum(-1).mean(), "accuracy": right.mean()}


def studied(c: Config) -> dict[str, Task]:
    model = lambda heads, rank, depth=1: (
        lambda seed: Model(c, heads, rank, depth, rngs=nnx.Rngs(seed))
    )
    same = c.dimension // c.low
    arms = {
        "full": model(1, c.dimension),
        "full, more": model(same, c.dimension),
        "low": model(same, c.low),
        "low, more": model(4 * same, c.low),
        "low, deep": model(same, c.low, 2),
        "full, deep": model(1, c.dimension, 2),
    }
    drawn = functools.partial(sphere, d=c.dimension)
    held = {
        "": drawn(4 * c.judged, c.points)(tasks.HELD, 0),
        "4x": drawn(c.judged, 4 * c.points)(tasks.HELD, 0),
    }
    optimizer = lab.Optimizer(c.steps, c.learning_rate, weight_decay=0.0)
    batch = drawn(c.batch, c.points)
    return {"farthest": Task(batch, look, held, c.steps, arms, "squared error", optimizer)}


def claims(c: Config) -> tuple[Claim, ...]:
    error = lambda arm, more="": of(arm, f"error{more}")
    wrong = Need("low rank leaves an error", error("low") - error("full"), above(0.1))
    return (
        Claim("as many parameters in heads of low rank leave twice the error", "low rank fails",
              error("low") / error("full"), above(2)),
        Claim("so do four times as many heads", "exponentially many",
              error("low, more") / error("full"), above(2)),
        Claim("at four times the points a head of full rank has the smaller error", "any length",
              error("low, more", ", 4x") - error("full", ", 4x"), above(0.1)),
        Claim("a second layer closes half of the gap", "depth closes it",
              (error("low, deep") - error("full")) / (error("low") - error("full")), below(0.5),
              (wrong, Need("two layers of full rank are as good as one",
                           error("full, deep") - error("full"), below(0.05)))),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
