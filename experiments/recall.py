"""Recall of many key-value pairs: what a state of constant size can hold, and what a window loses.

    python -m experiments.recall            # two CPU cores: about 40 minutes
    python -m experiments.recall --quick    # two CPU cores: under a minute; what CI runs

  Li et al. 2025, "InfiniteVL", arXiv:2512.08829: a hybrid of a sliding window and Gated DeltaNet
      keeps recall beyond the window, where the window alone fails, and beats pure linear layers on
      dense recall, at constant memory.
  Behrouz, Zhong and Mirrokni 2024, "Titans", arXiv:2501.00663: a deep memory with momentum and
      forgetting beats modern linear recurrent models and recalls beyond the training length.

Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927): a sequence lists
key-value pairs, then asks for keys in places drawn at random; each answer is the key's value.  All
mixers are trained on sequences of several numbers of pairs, and judged on each number alone, then
on sequences twice as long.  A point of the plot is a mixer at one width: accuracy with the most
pairs against the numbers it keeps for each layer.
"""

import functools
import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from attnjax import lab, masks
from attnjax.lab import Claim, above, below
from attnjax.nn import recipes
from attnjax.ops.softmax_core import multi_head_attention

PAPERS = (313, 353)

FILLER = 0  # stands where nothing is asked


@dataclass(frozen=True)
class Config:
    """Sizes of the models and of the task; the defaults are the full run."""

    mixers: tuple[str, ...] = (
        "softmax", "window", "linear", "gla", "delta", "gated delta", "hybrid", "titans",
    )  # fmt: skip
    widths: tuple[int, ...] = (16, 32, 64)
    pairs: tuple[int, ...] = (4, 8, 16)  # mixed in training, judged one by one
    length: int = 64  # of training sequences; judged at twice the length, too
    keys: int = 64  # that pairs are drawn from, and as many values
    window: int = 8  # tokens that the window sees
    heads: int = 2
    depth: int = 2
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 5e-3
    seeds: int = 2
    judged: int = 512  # sequences for each number of pairs
    results: Path = Path("results/recall")

    def __post_init__(self):
        lab.positive(self, "length keys window heads depth steps batch seeds judged")
        lab.choose("mixers", self.mixers, contestants(self.window))
        for name in ("widths", "pairs"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise lab.UserError(f"{name}: got {getattr(self, name)}, expected numbers above 0")
        if wrong := [w for w in self.widths if w % self.heads]:
            raise lab.UserError(f"widths: got {wrong[0]}, expected multiples of heads {self.heads}")
        if max(self.pairs) > self.keys:
            raise lab.UserError(f"pairs: got {max(self.pairs)}, expected at most keys {self.keys}")
        if 3 * max(self.pairs) > self.length:
            raise lab.UserError(
                f"length: got {self.length}, expected at least {3 * max(self.pairs)}: "
                f"{max(self.pairs)} pairs and their queries"
            )


@dataclass(frozen=True)
class Mixing:
    """What the blocks of a model mix tokens by, and the numbers that a layer keeps to decode."""

    mixer: Any  # lab.Mixer, or several
    kept: Callable[[Config, int], float]


def contestants(window: int) -> dict[str, Mixing]:
    """All mixers by name."""
    causal = functools.partial(multi_head_attention, mask=masks.causal)
    near = functools.partial(multi_head_attention, mask=masks.causal & masks.window(window - 1))
    state = lambda c, width: width * width / c.heads
    cache = lambda c, width: 2 * c.length * width
    short = lambda c, width: 2 * c.window * width
    return {
        "softmax": Mixing(causal, cache),
        "window": Mixing(near, short),
        "linear": Mixing(recipes.linear_attention, state),
        "gla": Mixing(recipes.gla, state),
        "delta": Mixing(recipes.delta_net, state),
        "gated delta": Mixing(recipes.gated_delta_net, state),
        "hybrid": Mixing(
            (near, recipes.gated_delta_net), lambda c, w: (short(c, w) + state(c, w)) / 2
        ),
        "titans": Mixing(recipes.titans, lambda c, width: 2 * state(c, width)),  # and its momentum
    }


QUICK = replace(
    Config(), mixers=("window", "linear", "gated delta", "hybrid"), widths=(16,), pairs=(2, 4),
    length=24, keys=16, steps=120, seeds=1, judged=128, batch=32,
)  # fmt: skip


def questions(
    config: Config, count: int, pairs: int, length: int, *, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, answers and where they are asked for, each (count, length).

    Tokens: key, value, key, value ..., then each key once more, in places drawn at random.
    """
    draw = np.random.default_rng((seed, step, pairs, length))
    keys = draw.random((count, config.keys)).argsort(1)[:, :pairs] + 1
    values = draw.integers(0, config.keys, (count, pairs)) + 1 + config.keys
    tokens = np.full((count, length), FILLER, np.int32)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    places = draw.random((count, length - 2 * pairs)).argsort(1)[:, :pairs] + 2 * pairs
    answers = np.zeros_like(tokens)
    np.put_along_axis(tokens, places, keys.astype(np.int32), 1)
    np.put_along_axis(answers, places, values.astype(np.int32), 1)
    return tokens, answers, answers > 0


def scores(graph: Any, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """(loss in nats, accuracy) of the answers that are asked for."""
    tokens, answers, asked = batch
    logits = nnx.merge(graph, params)(tokens)[0]
    share = lambda x: (x * asked).sum() / asked.sum()
    return share(lab.cross_entropy(logits, answers)), share(logits.argmax(-1) == answers)


@dataclass(eq=False)
class Result:
    """Metrics of each seed, "mixer, width" -> measure -> value; losses at the largest width."""

    seeds: list[lab.Metrics]
    losses: dict[str, list[np.ndarray]] = field(default_factory=dict)


def model(config: Config, mixer: Any, width: int, seed: int) -> tuple[Any, Any]:
    # Positions are left to the mixers: learned ones would not reach beyond the training length.
    # Pairs are neighbors, which convolutions and windows see, and softmax by the causal mask.
    shape = lab.Shape(width, config.depth, config.heads, 2 * config.length, "none")
    vocabulary = 2 * config.keys + 1
    return nnx.split(lab.TinyLM(shape, mixer, vocab=vocabulary, rngs=nnx.Rngs(seed)))


def run(config: Config) -> Result:
    """Trains every mixer at every width; goes on where it was interrupted."""
    folder = lab.results_folder(config.results)
    same = replace(
        config, results=Path(), seeds=1, judged=1, mixers=("softmax",), widths=(config.heads,)
    )  # of what decides a single run
    runs = folder / "checkpoints" / lab.run_key(same)
    result = Result([{} for _ in range(config.seeds)])
    chosen = lab.choose("mixers", config.mixers, contestants(config.window))
    with lab.Bars() as bars:
        for (name, mixing), width in itertools.product(chosen.items(), config.widths):
            graph, _ = model(config, mixing.mixer, width, 0)
            score = functools.partial(scores, graph)
            judge = jax.jit(score)
            watch = bars.add(f"{name}, {width}", config.steps, config.seeds)
            for seed in range(config.seeds):
                trained = lab.train(
                    model(config, mixing.mixer, width, seed)[1],
                    lambda params, batch, score=score: score(params, batch)[0],
                    lambda step, s=seed: mixed(config, s, step),
                    lab.Optimizer(config.steps, config.learning_rate, weight_decay=0.1),
                    folder=runs / f"{name}-{width}-{seed}",
                    watch=watch(seed),
                )
                row = {f"{pairs} pairs": accuracy(config, judge, trained.params, pairs, 1)
                       for pairs in config.pairs}  # fmt: skip
                row["2x length"] = accuracy(config, judge, trained.params, max(config.pairs), 2)
                row["kept"] = mixing.kept(config, width)
                result.seeds[seed][f"{name}, {width}"] = row
                if width == max(config.widths):
                    result.losses.setdefault(name, []).append(trained.losses)
    return result


def mixed(config: Config, seed: int, step: int) -> tuple[np.ndarray, ...]:
    """A training batch: as many sequences of each number of pairs."""
    count = -(-config.batch // len(config.pairs))
    drawn = [
        questions(config, count, pairs, config.length, seed=seed, step=step)
        for pairs in config.pairs
    ]
    tokens, answers, asked = (np.concatenate(x) for x in zip(*drawn, strict=True))
    return tokens, answers, asked


def accuracy(config: Config, judge: Any, params: Any, pairs: int, times: int) -> float:
    """The share of right answers, on sequences of `times` the training length."""
    held = questions(config, config.judged, pairs, times * config.length, seed=1_000_003, step=0)
    return float(judge(params, held)[1])


# --------------------------------------------------------------------------------- what it says


def gap(more: str, less: str, column: str, width: int) -> Callable[[lab.Metrics], float]:
    """Accuracy of one mixer over another's."""
    return lambda m: m[f"{more}, {width}"][column] - m[f"{less}, {width}"][column]


def claims(config: Config) -> list[Claim]:
    """At the smallest width, where memory is scarce, and with the most pairs."""
    width, hardest = min(config.widths), f"{max(config.pairs)} pairs"
    told = []

    def better(what: str, more: str, less: str, column: str, criterion: Any) -> None:
        if {more, less} <= set(config.mixers):
            said = f"{what}, width {width}, {column}: {more} - {less}"
            told.append(Claim(said, "better", gap(more, less, column, width), criterion))

    better("353: beyond the window", "hybrid", "window", hardest, above(0.1))
    better("353: dense recall", "hybrid", "linear", hardest, above(0.05))
    better("353: dense recall", "hybrid", "gla", hardest, above(0.05))
    better("313: recall", "titans", "gla", hardest, above(0))
    better("313: recall", "titans", "gated delta", hardest, above(0))
    better("313: beyond the training length", "titans", "gated delta", "2x length", above(0))
    if "titans" in config.mixers:
        lost = lambda m: m[f"titans, {width}"][hardest] - m[f"titans, {width}"]["2x length"]
        what = f"313: titans at twice the length, width {width}: accuracy lost"
        told.append(Claim(what, "keeps it", lost, below(0.1)))
    return told


def trade(config: Config, seeds: list[lab.Metrics]) -> Figure:
    """Accuracy with the most pairs against the numbers kept: a line a mixer, a point a width."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    hardest = f"{max(config.pairs)} pairs"
    for name, color in zip(config.mixers, itertools.cycle(lab.COLORS), strict=False):
        rows = [[m[f"{name}, {width}"] for m in seeds] for width in sorted(config.widths)]
        kept = [each[0]["kept"] for each in rows]
        values = np.array([[row[hardest] for row in each] for each in rows])
        axes.plot(kept, values.mean(1), marker="o", color=color, linewidth=1.6, label=name)
        axes.fill_between(kept, values.min(1), values.max(1), color=color, alpha=0.15, lw=0)
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="numbers kept for each layer",
             ylabel=f"accuracy with {hardest}")  # fmt: skip
    axes.axhline(1 / config.keys, color="#999999", linewidth=0.8, linestyle="--")
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def main(config: Config) -> None:
    """Runs, judges the claims, and writes tables and plots; then checkpoints are not needed."""
    began = time.monotonic()
    result = run(config)
    lab.report(
        __doc__,
        claims(config),
        result.seeds,
        config=config,
        folder=config.results,
        seconds=time.monotonic() - began,
        figures={
            "trade": trade(config, result.seeds),
            "loss": lab.loss_curves(result.losses, unit="nats per answer"),
        },
    )
    shutil.rmtree(config.results / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
