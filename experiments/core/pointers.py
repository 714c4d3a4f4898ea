"""Pointers learn convex hulls from examples, and find those of more points than were trained on.

    python -m experiments.core.pointers

  Vinyals, Fortunato and Jaitly 2015, "Pointer Networks", arXiv:1506.03134: attention whose weights
      are the output learns convex hulls, triangulations and tours from examples, better than
      sequences of a fixed vocabulary with attention (hull of 50 points: 72.6 % beside 38.9 %), and
      goes on to more points than it was trained on.

Random points of the unit square, sorted by x, and their hull counterclockwise from the first point
on, then an end.  GRUs encode the points and decode the hull.  "pointer" gives the end and each
point a probability by its encoding; "vocabulary" attends to the encodings and gives numbers of
points by a linear map of the most there are.  "wrong" is the share of hulls with any error,
"wrong points" that of points, decoded greedily by what the model has said itself.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import lab
from attnjax.experiments.core._gru import GRU
from attnjax.lab import Claim, Need, Task, below, of, tasks
from attnjax.ops.softmax_core import luong_concat, pointer_attention

PAPERS = (320,)

Pair = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 64
    fewest: int = 5  # points in training
    most: int = 8
    longer: int = 12  # points that nothing was trained on
    steps: int = 2500
    batch: int = 64
    results: Path = Path("results/pointers")


QUICK = replace(Config(), seeds=1, steps=150, fewest=4, most=5, longer=6, width=16)


def hull(points: np.ndarray) -> list[int]:
    """Indices of the hull of points (n,2) sorted by x, counterclockwise from the first."""

    def chain(order: range) -> list[int]:
        kept: list[int] = []
        for i in order:
            while len(kept) > 1 and _left(points[kept[-2]], points[kept[-1]], points[i]) <= 0:
                kept.pop()
            kept.append(i)
        return kept

    n = len(points)
    return chain(range(n))[:-1] + chain(range(n - 1, -1, -1))[:-1]


def _left(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """Above zero where a, b, c turn left."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def hulls(count: int, fewest: int, most: int):
    """(seed, step) -> points (count,n,2), answers (count,n + 1): 1 + index, then 0 to the end."""

    def batch(seed: int, step: int) -> tasks.Batch:
        draw = np.random.default_rng((seed, step, most))
        n = int(draw.integers(fewest, most + 1))
        points = draw.random((count, n, 2)).astype(np.float32)
        points = np.take_along_axis(points, points[..., :1].argsort(1), 1)
        wanted = np.zeros((count, n + 1), np.int32)
        for row, each in zip(wanted, points, strict=True):
            found = hull(each)
            row[: len(found)] = np.array(found) + 1
        return points, wanted

    return batch


class Network(nnx.Module):
    """Encodes points, and chooses one input after the other; input 0 is the end."""

    def __init__(self, width: int, choices: int | None, *, rngs: nnx.Rngs):
        self.into = nnx.Linear(3, width, rngs=rngs)
        self.encoder, self.decoder = GRU(width, rngs=rngs), GRU(width, rngs=rngs)
        make = lambda: nnx.Param(rngs.params.normal((width, width)) / np.sqrt(width))
        self.w_query, self.w_key = make(), make()
        self.w_score = nnx.Param(rngs.params.normal((width,)) / np.sqrt(width))
        self.words = None if choices is None else nnx.Linear(2 * width, choices, rngs=rngs)

    def step(self, seen: Pair, h: jax.Array, last: jax.Array) -> Pair:
        """The next state and log probabilities of inputs, after the input (B,) chosen last."""
        chosen = jnp.take_along_axis(seen[0], last[:, None, None], axis=1)[:, 0]
        h = self.decoder.step(h, self.decoder.seen(chosen))
        by = self.w_query[...], self.w_key[...], self.w_score[...]
        q, k = h[:, None, None], seen[1][:, :, None]
        if self.words is None:
            return h, jnp.log(pointer_attention(q, k, *by)[:, 0, 0] + 1e-9)
        read = luong_concat(q, k, k, *by)[:, 0, 0]
        return h, jax.nn.log_softmax(self.words(jnp.concatenate([h, read], -1)))

    def __call__(self, points: jax.Array, told: jax.Array | None) -> Pair:
        """Log probabilities and greedy choices, (B,n + 1,inputs) and (B,n + 1)."""
        first = jnp.zeros((len(points), 1, 3)).at[..., 2].set(1.0)
        x = jnp.concatenate([first, jnp.pad(points, ((0, 0), (0, 0), (0, 1)))], axis=1)
        inputs = self.into(x)
        encoded = self.encoder(inputs)

        def go(carry: Any, given: jax.Array) -> Any:
            h, last = carry
            h, logs = self.step((inputs, encoded), h, last)
            best = logs.argmax(-1).clip(0, x.shape[1] - 1)
            return (h, best if told is None else given), (logs, best)

        start = encoded[:, -1], jnp.zeros(len(points), jnp.int32)
        given = jnp.zeros((x.shape[1], len(points)), jnp.int32) if told is None else told.T
        logs, best = jax.lax.scan(go, start, given)[1]
        return logs.swapaxes(0, 1), best.T


def look(model: Network, batch: tasks.Batch) -> tasks.Scores:
    points, wanted = (jnp.asarray(x) for x in batch)
    logs, _ = model(points, wanted)
    counted = jnp.cumsum(wanted == 0, axis=1) <= 1  # up to the first end
    own = jnp.take_along_axis(logs, wanted[..., None].clip(0, logs.shape[-1] - 1), axis=-1)[..., 0]
    right = (model(points, None)[1] == wanted) | ~counted
    return {
        "nats": -tasks.share(own, counted),
        "wrong": 1 - right.all(1).mean(),
        "wrong points": 1 - tasks.share(right, counted),
    }


def studied(c: Config) -> dict[str, Task]:
    make = lambda choices: lambda seed: Network(c.width, choices, rngs=nnx.Rngs(seed))
    arms = {"pointer": make(None), "vocabulary": make(c.most + 1)}
    held = {
        f"{n} points": hulls(4 * c.judged, n, n)(tasks.HELD, 0)
        for n in (c.fewest, c.most, c.longer)
    }
    batch = functools.partial(hulls(c.batch, c.fewest, c.most))
    return {"hulls": Task(batch, look, held, c.steps, arms, "nats per point")}


def claims(c: Config) -> tuple[Claim, ...]:
    wrong = lambda n, measure="wrong": (
        of("pointer", f"{measure}, {n} points") / of("vocabulary", f"{measure}, {n} points")
    )
    learned = Need("pointers find hulls of as many points as in training",
                   of("pointer", f"wrong, {c.most} points")
                   / of("vocabulary", f"wrong, {c.longer} points"), below(0.5))  # fmt: skip
    return (
        Claim(f"pointers find more hulls of {c.most} points than a fixed vocabulary",
              "72.6 % beside 38.9 %", wrong(c.most), below(0.8)),
        Claim(f"they find hulls of {c.longer} points, of which none was seen in training",
              "generalizes", wrong(c.longer), below(0.9), (learned,)),
        Claim(f"they find most points of the hulls of {c.longer} points", "generalizes",
              of("pointer", f"wrong points, {c.longer} points"), below(0.3), (learned,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
