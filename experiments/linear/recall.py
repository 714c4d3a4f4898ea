"""A window and a gated delta rule, layer by layer, recall what neither recalls alone.

    python -m experiments.linear.recall

  Li et al. 2025, "InfiniteVL: Synergizing Linear and Sparse Attention for Highly-Efficient,
      Unlimited-Input Vision-Language Models", arXiv:2512.08829: models of sliding windows degrade
      beyond the window and those of linear attention where information is dense; layers of windows,
      each with three of Gated DeltaNet behind it, do neither, at constant memory.

Multi-query associative recall: key-value pairs, then questions for keys.  Models are trained on
sequences of several numbers of pairs, and judged on each number alone.  The plot has accuracy with
the most pairs against the numbers that a layer keeps to go on from.  Pairs are bound by the short
convolutions of the linear layers, so the hybrid's first layer is one of these; the paper's has the
window.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from matplotlib.figure import Figure

from attnjax import attend, lab, masks
from attnjax.core.positions import rotary
from attnjax.lab import Claim, Task, above, of, tasks
from attnjax.nn import recipes

PAPERS = (353,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 16
    depth: int = 4  # of the hybrid every fourth layer, from the second, has a window
    heads: int = 2
    pairs: tuple[int, ...] = (4, 16)  # mixed in training, judged one by one
    length: int = 48
    keys: int = 24  # that pairs are drawn from, and as many values
    window: int = 8  # tokens
    steps: int = 800
    batch: int = 32
    learning_rate: float = 1e-2
    judged: int = 256  # sequences of each number of pairs
    results: Path = Path("results/recall")

    def __post_init__(self):
        super().__post_init__()
        if max(self.pairs) > self.keys:
            raise lab.UserError(f"pairs: got {max(self.pairs)}, expected at most keys {self.keys}")
        if 3 * max(self.pairs) > self.length:
            raise lab.UserError(
                f"length: got {self.length}, expected at least {3 * max(self.pairs)}: "
                f"{max(self.pairs)} pairs and their queries"
            )

    @property
    def hardest(self) -> str:
        return f"accuracy, {max(self.pairs)} pairs"


QUICK = replace(Config(), seeds=1, depth=2, pairs=(2, 4), length=24, keys=16, window=4, steps=100)


def windowed(width: int) -> lab.Mixer:
    """Causal attention to a window, with rotary positions."""
    mask = masks.causal & masks.window(width - 1)

    def op(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        places = jnp.arange(q.shape[1])
        return attend(rotary(q, places), rotary(k, places), v, mask=mask)

    return op


def mixers(c: Config) -> dict[str, lab.Mixer | tuple[lab.Mixer, ...]]:
    near, delta = windowed(c.window), recipes.gated_delta_net
    return {
        "window": near,
        "linear": recipes.linear_attention,
        "gated delta": delta,
        "hybrid": (delta, near, delta, delta),
    }


def kept(c: Config, name: str) -> float:
    """Numbers that a layer keeps: keys and values, or a matrix a head; a hybrid's mean."""
    state = c.width * c.width / c.heads
    cache = 2 * c.window * c.width
    return {"window": cache, "hybrid": (cache + 3 * state) / 4}.get(name, state)


def studied(c: Config) -> dict[str, Task]:
    vocabulary = 2 * c.keys + 1
    drawn = lambda count, pairs: tasks.recall(count, pairs, c.length, c.keys)
    each = -(-c.batch // len(c.pairs))

    shape = lab.Shape(c.width, c.depth, c.heads, positions="none")

    def model(mixer):
        return lambda seed: lab.TinyLM(shape, mixer, vocab=vocabulary, rngs=nnx.Rngs(seed))

    arms = {name: model(mixer) for name, mixer in mixers(c).items()}
    held = {f"{n} pairs": drawn(c.judged, n)(tasks.HELD, 0) for n in c.pairs}
    batch = tasks.together(*(drawn(each, pairs) for pairs in c.pairs))
    return {"recall": Task(batch, tasks.answers, held, c.steps, arms, "nats per answer")}


def claims(c: Config) -> tuple[Claim, ...]:
    accuracy = lambda name: of(name, c.hardest)
    more = lambda one, other: accuracy(one) - accuracy(other)
    return (
        Claim("beyond the window, the hybrid recalls what a window alone does not", "degrades",
              more("hybrid", "window"), above(0.2)),
        Claim("the hybrid recalls more than linear attention", "underperforms",
              more("hybrid", "linear"), above(0.1)),
        Claim("the hybrid recalls more than the gated delta rule alone", "underperforms",
              more("hybrid", "gated delta"), above(0.1)),
    )  # fmt: skip


def figures(c: Config, result: lab.Result) -> Mapping[str, Figure]:
    """Accuracy with the most pairs against the numbers kept: a dot a seed."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, color in zip(mixers(c), lab.COLORS, strict=False):
        values = [metrics[name][c.hardest] for metrics in result.seeds]
        axes.plot([kept(c, name)] * len(values), values, "o", color=color, label=name)
    axes.axhline(1 / c.keys, color="#999999", linewidth=0.8, linestyle="--")  # chance
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="numbers kept for each layer",
             ylabel=c.hardest)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return {"trade": figure}


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims, figures)

if __name__ == "__main__":
    STUDY.main()
