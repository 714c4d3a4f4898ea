"""Dual triangle attention reads in both directions and still knows positions, without codes.

    python -m experiments.dual_triangle            # two CPU cores: about 6 minutes
    python -m experiments.dual_triangle --quick    # two CPU cores: under 1 minute; what CI runs

  Hallee and Gleghorn 2026, "Dual Triangle Attention: Effective Bidirectional Attention Without
      Positional Embeddings", arXiv:2604.18603v1: without position embeddings, dual triangle and
      causal attention learn the argmax position probe and standard bidirectional attention cannot;
      in masked language modeling dual triangle is strong with or without position embeddings.

The probe: random tokens and a question, whose output has to name the place of the largest token.
Without codes full attention cannot know it: its outputs only permute with its inputs.  Then bytes
of Python's standard library, a seventh of them hidden, to be filled in from both sides.
"""

import functools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import lab, masks
from attnjax.lab import Claim, above, below, between
from attnjax.ops.position import dual_triangle_attention
from attnjax.ops.softmax_core import multi_head_attention

PAPERS = (378,)

HIDDEN = 1  # stands for a hidden byte; source text has no such control character


@dataclass(frozen=True)
class Config:
    """Sizes of the models and of the training; the defaults are the full run."""

    seeds: int = 3
    width: int = 64
    depth: int = 3
    heads: int = 4
    places: int = 16  # of the probe; chance is one in as many
    values: int = 64  # that the probe's tokens can take
    probe_steps: int = 2000
    probe_batch: int = 64
    length: int = 64  # bytes of text
    text_steps: int = 2000
    text_batch: int = 16
    learning_rate: float = 3e-3
    judged: int = 128  # validation sequences
    text: Path | None = None  # a file or a folder; default: Python's standard library
    results: Path = Path("results/dual_triangle")

    def __post_init__(self):
        lab.positive(
            self,
            "seeds width depth heads places probe_steps probe_batch length text_steps text_batch "
            "judged",
        )
        if not self.places <= self.values < 256:
            raise lab.UserError(
                f"values: got {self.values}, expected {self.places} to 255 (places)"
            )


QUICK = replace(Config(), seeds=1, probe_steps=400, text_steps=300, judged=64)

full = multi_head_attention
causal = functools.partial(multi_head_attention, mask=masks.causal)
PROBED = {"full": full, "causal": causal, "dual triangle": dual_triangle_attention}
# name -> attention, and positions
FILLED = {
    "full, learned": (full, "learned"),
    "full, none": (full, "none"),
    "dual, none": (dual_triangle_attention, "none"),
}


@dataclass(eq=False)
class Result:
    """Metrics of each seed; loss curves of probe and text by name."""

    seeds: list[lab.Metrics]
    probe: dict[str, list[np.ndarray]] = field(default_factory=dict)
    text: dict[str, list[np.ndarray]] = field(default_factory=dict)


def puzzle(config: Config, count: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct random tokens and a question (count, places + 1), the largest's place (count,).

    The question is a token of its own: were the last token asked, it would know when it is the
    largest itself, and full attention would do better than chance.
    """
    draw = np.random.default_rng((seed, step))
    tokens = draw.random((count, config.values)).argsort(1)[:, : config.places]
    asked = np.pad(tokens, ((0, 0), (0, 1)), constant_values=config.values)
    return asked.astype(np.int32), tokens.argmax(1).astype(np.int32)


def hide(tokens: np.ndarray, seed: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens with a seventh of them hidden, tokens, where they were hidden), all (count, T)."""
    hidden = np.random.default_rng((seed, step, 1)).random(tokens.shape) < 1 / 7
    return np.where(hidden, np.int32(HIDDEN), tokens), tokens, hidden


def probe_scores(graph: Any, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """(loss in nats, accuracy) of the last position's answer."""
    tokens, place = batch
    logits = nnx.merge(graph, params)(tokens)[0][:, -1]
    return lab.cross_entropy(logits, place).mean(), (logits.argmax(-1) == place).mean()


def text_loss(graph: Any, params: Any, batch: Any) -> jax.Array:
    """Nats per hidden byte."""
    shown, tokens, hidden = batch
    losses = lab.cross_entropy(nnx.merge(graph, params)(shown)[0], tokens)
    return jnp.where(hidden, losses, 0).sum() / hidden.sum()


def run(config: Config) -> Result:
    """Trains on the probe and on text; goes on where it was interrupted."""
    folder = lab.results_folder(config.results)
    text = lab.read_text(config.text)
    same = replace(config, results=Path(), seeds=1, judged=1)
    key = lab.run_key(same, text.digest)  # of what decides a single run
    result = Result([{} for _ in range(config.seeds)])
    with lab.Bars() as bars:
        runs = Runs(config, folder / "checkpoints" / key, bars)
        probe(runs, result)
        fill(runs, result, text)
    return result


@dataclass(frozen=True, eq=False)
class Runs:
    """What all runs of this experiment share."""

    config: Config
    folder: Path
    bars: lab.Bars

    def model(self, op: Callable[..., jax.Array], positions: Any, seed: int) -> tuple[Any, Any]:
        c = self.config
        shape = lab.Shape(c.width, c.depth, c.heads, max(c.places + 1, c.length), positions)
        return nnx.split(lab.TinyLM(shape, op, rngs=nnx.Rngs(seed)))

    def optimizer(self, steps: int) -> lab.Optimizer:
        return lab.Optimizer(steps, self.config.learning_rate, weight_decay=0.1)


def probe(runs: Runs, result: Result) -> None:
    """Argmax of random tokens, no position embeddings."""
    c = runs.config
    judged = puzzle(c, 1024, 1000, 0)
    for name, op in PROBED.items():
        graph, _ = runs.model(op, "none", 0)
        scores = functools.partial(probe_scores, graph)
        watch = runs.bars.add(f"probe: {name}", c.probe_steps, c.seeds)
        for seed in range(c.seeds):
            trained = lab.train(
                runs.model(op, "none", seed)[1],
                lambda params, batch, scores=scores: scores(params, batch)[0],
                lambda step, s=seed: puzzle(c, c.probe_batch, s, step),
                runs.optimizer(c.probe_steps),
                folder=runs.folder / f"probe-{name}-{seed}",
                watch=watch(seed),
            )
            result.probe.setdefault(name, []).append(trained.losses)
            loss, accuracy = jax.jit(scores)(trained.params, judged)
            result.seeds[seed][name] = {"accuracy": float(accuracy), "nats": float(loss)}


def fill(runs: Runs, result: Result, text: lab.Text) -> None:
    """Hidden bytes of text, with and without learned position embeddings."""
    c = runs.config
    cut = lambda tokens: tokens[:, 1:]  # every byte is given or hidden: no opening byte
    judged = hide(cut(lab.evenly(text.validation, c.length, c.judged)), 1000, 0)
    for name, (op, positions) in FILLED.items():
        graph, _ = runs.model(op, positions, 0)
        loss = functools.partial(text_loss, graph)
        watch = runs.bars.add(f"text: {name}", c.text_steps, c.seeds)
        for seed in range(c.seeds):

            def batches(step, seed=seed):
                rows = lab.windows(text.train, c.length, c.text_batch, seed=seed, step=step)
                return hide(cut(rows), seed, step)

            trained = lab.train(
                runs.model(op, positions, seed)[1],
                loss,
                batches,
                runs.optimizer(c.text_steps),
                folder=runs.folder / f"text-{name}-{seed}",
                watch=watch(seed),
            )
            result.text.setdefault(name, []).append(trained.losses)
            judgement = float(jax.jit(loss)(trained.params, judged))
            result.seeds[seed][name] = {"nats": judgement}


def accuracy(name: str) -> Callable[[lab.Metrics], float]:
    return lambda m: m[name]["accuracy"]


def gap(more: str, less: str) -> Callable[[lab.Metrics], float]:
    """Nats per hidden byte by which one model is worse than another."""
    return lambda m: m[more]["nats"] - m[less]["nats"]


def claims(config: Config) -> tuple[Claim, ...]:
    """Chance is one place in `places`; half the answers right is far from it."""
    chance = 1 / config.places
    return (
        Claim("probe: full", "cannot", accuracy("full"), between(0.5 * chance, 1.5 * chance)),
        Claim("probe: causal", "learns", accuracy("causal"), above(0.5)),
        Claim("probe: dual triangle", "learns", accuracy("dual triangle"), above(0.5)),
        Claim(
            "text: dual without codes - full with learned ones",
            "strong",
            gap("dual, none", "full, learned"),
            below(0.05),
        ),
        Claim(
            "text: full without codes - dual without",
            "viable",
            gap("full, none", "dual, none"),
            above(0.1),
        ),
    )


def main(config: Config) -> None:
    """Runs, judges the claims, and writes tables and plots; then checkpoints are not needed."""
    began = time.monotonic()
    result = run(config)
    figures = {
        "probe": lab.loss_curves(result.probe, unit="nats per answer"),
        "text": lab.loss_curves(result.text, unit="nats per hidden byte"),
        "accuracy": lab.bars(
            [{name: m[name] for name in PROBED} for m in result.seeds],
            {"accuracy": f"accuracy of the probe (share; chance {1 / config.places:.2g})"},
        ),
    }
    lab.report(
        __doc__,
        claims(config),
        result.seeds,
        config=config,
        folder=config.results,
        seconds=time.monotonic() - began,
        figures=figures,
    )
    shutil.rmtree(config.results / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
