"""A window and a gated delta rule, layer by layer, recall what neither recalls alone.

    python -m experiments.linear.recall

  Li et al. 2025, "InfiniteVL: Synergizing Linear and Sparse Attention for Highly-Efficient,
      Unlimited-Input Vision-Language Models", arXiv:2512.08829: models of sliding windows degrade
      beyond the window and those of linear attention where information is dense; layers of windows,
      each with three of Gated DeltaNet behind it, do neither, at constant memory.

Multi-query associative recall: key-value pairs, then questions for keys.  Models are trained on
sequences of several numbers of pairs, and judged on each number alone.  The plot has accuracy with
the most pairs against the numbers that a layer keeps to go on from.
"""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from attnjax import lab, masks
from attnjax.lab import Claim, Task, above, of, tasks
from attnjax.nn import recipes
from attnjax.ops.softmax_core import multi_head_attention

PAPERS = (353,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    widths: tuple[int, ...] = (16, 32)
    depth: int = 4  # of the hybrid every fourth layer, from the first, has a window
    heads: int = 2
    pairs: tuple[int, ...] = (4, 16)  # mixed in training, judged one by one
    length: int = 48
    keys: int = 32  # that pairs are drawn from, and as many values
    window: int = 8  # tokens
    steps: int = 1000
    batch: int = 64
    learning_rate: float = 5e-3
    judged: int = 256  # sequences of each number of pairs
    results: Path = Path("results/recall")

    def __post_init__(self):
        super().__post_init__()
        if wrong := [w for w in self.widths if w < 1 or w % self.heads]:
            raise lab.UserError(f"widths: got {wrong[0]}, expected multiples of heads {self.heads}")
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


QUICK = replace(
    Config(), seeds=1, depth=2, widths=(16,), pairs=(2, 4), length=24, keys=16, steps=100
)


def mixers(c: Config) -> dict[str, lab.Mixer | tuple[lab.Mixer, ...]]:
    causal = functools.partial(multi_head_attention, mask=masks.causal)
    near = functools.partial(multi_head_attention, mask=masks.causal & masks.window(c.window - 1))
    return {
        "softmax": causal,
        "window": near,
        "linear": recipes.linear_attention,
        "gated delta": recipes.gated_delta_net,
        "hybrid": (near, *3 * (recipes.gated_delta_net,)),
    }


def kept(c: Config, name: str, width: int) -> float:
    """Numbers that a layer keeps: keys and values, or a matrix a head; a hybrid's mean."""
    state = width * width / c.heads
    cache = {"softmax": 2 * c.length * width, "window": 2 * c.window * width}
    return (cache["window"] + 3 * state) / 4 if name == "hybrid" else cache.get(name, state)


def studied(c: Config) -> dict[str, Task]:
    vocabulary = 2 * c.keys + 1
    drawn = lambda count, pairs: tasks.recall(count, pairs, c.length, c.keys)
    each = -(-c.batch // len(c.pairs))

    def model(mixer, width):
        # Pairs are neighbors, which convolutions and windows see, and softmax by the causal mask.
        shape = lab.Shape(width, c.depth, c.heads, c.length, "none")
        return lambda seed: lab.TinyLM(shape, mixer, vocab=vocabulary, rngs=nnx.Rngs(seed))

    arms = {
        f"{name}, {width}": model(mixer, width)
        for (name, mixer), width in itertools.product(mixers(c).items(), c.widths)
    }
    held = {f"{n} pairs": drawn(c.judged, n)(tasks.HELD, 0) for n in c.pairs}
    batch = tasks.together(*(drawn(each, pairs) for pairs in c.pairs))
    return {"recall": Task(batch, tasks.answers, held, c.steps, arms, "nats per answer")}


def claims(c: Config) -> tuple[Claim, ...]:
    width = min(c.widths)  # where memory is scarce
    accuracy = lambda name: of(f"{name}, {width}", c.hardest)
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
    """Accuracy with the most pairs against the numbers kept: a line a mixer, a point a width."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, color in zip(mixers(c), lab.COLORS, strict=False):
        widths = sorted(c.widths)
        rows = [[m[f"{name}, {width}"][c.hardest] for m in result.seeds] for width in widths]
        values, numbers = np.array(rows), [kept(c, name, width) for width in widths]
        axes.plot(numbers, values.mean(1), marker="o", color=color, linewidth=1.6, label=name)
        axes.fill_between(numbers, values.min(1), values.max(1), color=color, alpha=0.15, lw=0)
    axes.axhline(1 / c.keys, color="#999999", linewidth=0.8, linestyle="--")  # chance
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="numbers kept for each layer",
             ylabel=c.hardest)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return {"trade": figure}


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims, figures)

if __name__ == "__main__":
    STUDY.main()
