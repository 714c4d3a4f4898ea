"""A sum of outer products recalls as many pairs as keys are wide; correcting errors recalls more.

    python -m experiments.theory.conditioning

  Qiao 2025, "Understanding Transformers through the Lens of Pavlovian Conditioning",
      arXiv:2508.08289: linear attention is conditioning, keys the conditional and values the
      unconditional stimuli; on average its Hebbian memory holds on the order of d_k pairs before
      they interfere; rules that correct errors could hold more, as the delta rule, and averages of
      redundant heads are less noisy.

Random unit keys and values, `load` d_k pairs, and every key asked for once; nothing is trained, and
each of the seeds draws its own.  "cosine" is that of what is read and the value, on average,
"found" the share of pairs whose value is the nearest to it.  "hebbian" is a sum over pairs, "delta"
the delta rule with beta = 1 in the order of the pairs, "averaged" the mean of `redundant` Hebbian
memories with other keys for the same values.  A pair is asked for when all have been seen.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import lab, linear_attend
from attnjax.lab import Arm, Claim, Need, Task, above, between, of, tasks

PAPERS = (396,)

Read = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    widths: tuple[int, ...] = (16, 32, 64)  # d_k, and of values
    loads: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)  # pairs over d_k
    redundant: int = 4
    batch: int = 32  # memories of a seed
    results: Path = Path("results/conditioning")


QUICK = replace(Config(), seeds=1, widths=(4, 8, 16), batch=8)


def hebbian(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return linear_attend(q, k, v, block=None)


def delta(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return linear_attend(q, k, v, beta=jnp.ones(k.shape[:3]), block=None)


MEMORIES = {"hebbian": (hebbian, 1), "delta": (delta, 1), "averaged": (hebbian, None)}


class Memory(nnx.Module):
    """A way to read, and how many heads it averages; the keys are those of the seed."""

    def __init__(self, seed: int, read: Read, heads: int):
        self.read, self.heads = read, heads
        self.seed = nnx.Variable(jnp.asarray(seed, jnp.int32))

    def __call__(self, c: Config, load: float, width: int) -> tasks.Scores:
        draw = jax.random.key(self.seed[...])
        pairs = max(1, round(load * width))
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        keys, values = (
            unit(jax.random.normal(each, (c.batch, pairs, self.heads if i == 0 else 1, width)))
            for i, each in enumerate(jax.random.split(draw))
        )
        shown = jnp.broadcast_to(values, keys.shape)
        got = unit(self.read(keys, keys, shown).mean(2))
        alike = jnp.einsum("BTD,BSD->BTS", got, values[:, :, 0])
        own = jnp.diagonal(alike, axis1=1, axis2=2)
        found = (alike.argmax(-1) == jnp.arange(pairs)).mean()
        return {"cosine": own.mean(), "found": found}


def look(c: Config, width: int, model: Memory, batch: tasks.Batch) -> tasks.Scores:
    scores = {load: model(c, load, width) for load in c.loads}
    return {f"{m}, {load:g}": x for load, each in scores.items() for m, x in each.items()}


def studied(c: Config) -> dict[str, Task]:
    def arm(read, heads):
        return Arm(lambda seed: Memory(seed, read, heads or c.redundant), steps=0)

    arms = {name: arm(*made) for name, made in MEMORIES.items()}
    nothing = (np.zeros(1, np.float32),)
    return {
        f"{width}": Task(lambda seed, step: nothing, functools.partial(look, c, width), nothing, 1,
                         arms)
        for width in c.widths
    }  # fmt: skip


def claims(c: Config) -> tuple[Claim, ...]:
    cosine = lambda width, arm, load: of(f"{width}: {arm}", f"cosine, {load:g}")
    small, large = c.widths[0], c.widths[-1]
    first, half, one, last = c.loads
    falls = Need("pairs interfere", cosine(large, "hebbian", first)
                 - cosine(large, "hebbian", last), above(0.2))  # fmt: skip
    return (
        *(Claim(f"{load:g} d_k pairs are as clear of {small} numbers as of {large}", "O(d_k)",
                cosine(large, "hebbian", load) - cosine(small, "hebbian", load),
                between(-0.05, 0.05), (falls,)) for load in (half, one, last)),
        *(Claim(f"of {load:g} d_k pairs, the delta rule recalls more clearly", "more",
                cosine(large, "delta", load) - cosine(large, "hebbian", load), above(0.05))
          for load in (half, one)),
        Claim(f"{c.redundant} heads averaged are less noisy", "redundancy",
              cosine(large, "averaged", one) - cosine(large, "hebbian", one), above(0.05)),
        Claim(f"{c.redundant} heads recall {last:g} d_k as one does {half:g}", "1 / h",
              cosine(large, "averaged", last) - cosine(large, "hebbian", half),
              between(-0.05, 0.05), (falls,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
