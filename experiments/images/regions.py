"""Attention in strips, halos, or windows and their means is as accurate as that to all cells.

    python -m experiments.images.regions

  Tian, Ye and Doermann 2025, "YOLOv12: Attention-Centric Real-Time Object Detectors",
      arXiv:2502.12524: four strips, with a convolution of the values, keep the accuracy of global
      attention.
  Vaswani et al. 2021, "Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
      arXiv:2103.12731: blocks of queries that see a halo around them are better than blocks alone.
  Pan, Cai and Zhuang 2022, "Fast Vision Transformers with HiLo Attention", arXiv:2205.13213: heads
      in windows and heads on means of windows are as accurate; what the former give has more of
      the high frequencies.

Classifiers of scikit-learn's digits, pixel by pixel: maps of 8 x 8.  "blocks" are windows of 2 x 2,
"halo" sees one cell around them, "strips" four strips with and without a 5 x 5 convolution of the
values, "hilo" half of the heads each.  "high" is the share of the energy of what the first and the
last half of the heads give, constants apart, in the half of the frequencies that are higher.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, lab, masks
from attnjax.lab import Claim, Need, Task, above, below, of, tasks
from attnjax.ops.local_structured import area_attention, halo_attention, hilo_attention

PAPERS = (285, 318, 276)

SIDE = 8  # of an image of one-pixel patches
GRID = (SIDE, SIDE)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 32
    depth: int = 2
    heads: int = 4
    steps: int = 400
    batch: int = 32
    results: Path = Path("results/regions")


QUICK = replace(Config(), seeds=1, depth=1, steps=150)


class Strips(nnx.Module):
    """Four strips, and a convolution of the values that begins at nothing."""

    def __init__(self, heads: int, width: int):
        self.kernel = nnx.Param(jnp.zeros((5, 5, heads, width)))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return area_attention(q, k, v, self.kernel[...], shape=GRID)


hilo = functools.partial(hilo_attention, shape=GRID)
OPS = {
    "global": attend,
    "own cell": functools.partial(attend, mask=masks.window(0, 0)),
    "blocks": functools.partial(halo_attention, shape=GRID, block=2, halo=0),
    "halo": functools.partial(halo_attention, shape=GRID, block=2, halo=1),
    "strips alone": functools.partial(area_attention, shape=GRID),
    "hilo": hilo,
}


def high(out: jax.Array) -> jax.Array:
    """The share of energy in the higher half of the frequencies, of maps (B,64,N,H)."""
    maps = out.reshape(len(out), *GRID, out.shape[2] * out.shape[3])
    energy = jnp.square(jnp.abs(jnp.fft.fft2(maps, axes=(1, 2)))).at[:, 0, 0].set(0.0)
    size = np.maximum(*np.meshgrid(*2 * (np.abs(np.fft.fftfreq(SIDE)),)))
    return energy[:, size > 0.25].sum() / energy.sum()


def look(model: lab.TinyViT, batch: tasks.Batch) -> tasks.Scores:
    scores = tasks.labels(model, batch)
    if model.stack.blocks[0].attention.attend is not hilo:
        return scores
    seen = model(jnp.asarray(batch[0]))[1]
    parts = [hilo(*(seen[name][layer] for name in "qkv")) for layer in range(len(seen["q"]))]
    half = parts[0].shape[2] // 2
    first, last = (
        jnp.stack([high(part[:, :, chosen]) for part in parts]).mean()
        for chosen in (slice(half), slice(half, None))
    )
    return scores | {"high, windows": first, "high, means": last}


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, SIDE * SIDE)
    model = lambda mixers: lambda seed: lab.TinyViT(shape, mixers(), patch=1, rngs=nnx.Rngs(seed))
    arms = {name: model(lambda op=op: op) for name, op in OPS.items()}
    arms["strips"] = model(lambda: [Strips(c.heads, c.width // c.heads) for _ in range(c.depth)])
    batch, held = tasks.handwriting(c.batch)
    return {"digits": Task(batch, look, held, c.steps, arms, "nats per image")}


def claims(c: Config) -> tuple[Claim, ...]:
    right = lambda arm: of(arm, "accuracy")
    loses = lambda arm: right("global") - right(arm)
    needed = Need("other cells are needed", loses("own cell"), above(0.05))
    return (
        Claim("four strips with a convolution are as accurate as global attention", "keeps",
              loses("strips"), below(0.02), (needed,)),
        Claim("the convolution improves strips", "better",
              right("strips") - right("strips alone"), above(0.01)),
        Claim("a halo improves blocks", "better", right("halo") - right("blocks"), above(0.01)),
        Claim("windows and their means are as accurate as global attention", "equal or better",
              loses("hilo"), below(0.02), (needed,)),
        Claim("what heads in windows give has more of the high frequencies, half as much again",
              "more", of("hilo", "high, windows") / of("hilo", "high, means"), above(1.5)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
