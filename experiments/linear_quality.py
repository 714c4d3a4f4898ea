"""What repairs linear attention: refined gates and features for text, injectivity for images.

    python -m experiments.linear_quality            # two CPU cores: about 20 minutes
    python -m experiments.linear_quality --quick    # two CPU cores: under a minute; what CI runs

  Lu et al. 2025, "ReGLA", arXiv:2502.01578: a bounded feature map and a refined forget gate, each
      lower the language model loss of gated linear attention.
  Han et al. 2024, "Bridging the Divide", arXiv:2412.06590: linear attention that divides by its
      sum gives collinear queries the same weights, softmax does not; made injective, and with a
      local residual, it matches or passes softmax in small vision models.

Text is Python's standard library, byte by byte; images are scikit-learn's digits in patches of one
pixel, 64 tokens.  Collisions are counted on random queries and their doubles, without training.
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

from attnjax import features, lab, linear_attend, normalizers
from attnjax.lab import Claim, above, below
from attnjax.nn import Gate, Recipe, recipes
from attnjax.ops.linear_recurrent import gla, inline_attention, inline_local_attention
from attnjax.ops.linear_recurrent.regla import log_refined_gate, safe_exp
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.probes import attention_map

PAPERS = (287, 383)


@dataclass(frozen=True)
class Config:
    """Sizes of the models and of the training; the defaults are the full run."""

    seeds: int = 3
    width: int = 64
    depth: int = 2
    heads: int = 2
    length: int = 128  # bytes of text
    text_steps: int = 1500
    text_batch: int = 16
    image_steps: int = 600
    image_batch: int = 64
    learning_rate: float = 3e-3
    judged: int = 128  # validation sequences
    text: Path | None = None  # a file or a folder; default: Python's standard library
    results: Path = Path("results/linear_quality")

    def __post_init__(self):
        lab.positive(
            self,
            "seeds width depth heads length text_steps text_batch image_steps image_batch judged",
        )
        if self.width % self.heads:
            raise lab.UserError(f"width: got {self.width}, expected a multiple of {self.heads}")


QUICK = replace(
    Config(), seeds=1, width=16, depth=1, length=48, text_steps=80, image_steps=40, judged=32
)

# ---------------------------------------------------------------------------------- contestants

_PLAIN = {"log_decay": Gate(jax.nn.log_sigmoid, bias=4.0, channels=True)}
_REFINED = recipes.regla.gates


def _refined_gate(q: Any, k: Any, v: Any, gate: Any, refine: Any, **state: Any) -> Any:
    return gla(q, k, v, log_refined_gate(gate, refine), **state)


def _safe_features(q: Any, k: Any, v: Any, log_decay: Any, **state: Any) -> Any:
    return gla(safe_exp(q), safe_exp(k), v, log_decay, **state)


# All begin with gates near one, and all norm each head's output: the third refinement.
TEXT: dict[str, Recipe] = {
    "gla": Recipe(gla, gates=_PLAIN),
    "safe features": Recipe(_safe_features, gates=_PLAIN),
    "refined gate": Recipe(_refined_gate, gates=_REFINED),
    "regla": recipes.regla,
}


def divisive(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Linear attention of relu features, divided by its sum, in both directions."""
    return linear_attend(
        features.relu(q), features.relu(k), v, normalize=normalizers.divide, block=None
    )


injective = functools.partial(inline_attention, phi=features.relu)


class Local(nnx.Module):
    """Injective linear attention and 3 x 3 neighbors, weighed by a small network of the mean."""

    def __init__(self, heads: int, width: int, side: int, *, rngs: nnx.Rngs):
        self.linear = nnx.LinearGeneral((heads, width), (heads, 9), axis=(-2, -1), rngs=rngs)
        self.side = side

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        weights = self.linear(v.mean(1)).reshape(q.shape[0], q.shape[2], 3, 3)
        grid = (self.side, self.side)
        return inline_local_attention(q, k, v, weights, shape=grid, phi=features.relu)


IMAGE: dict[str, Callable[[Config, int], Any]] = {
    "softmax": lambda config, seed: multi_head_attention,
    "divisive": lambda config, seed: divisive,
    "injective": lambda config, seed: injective,
    "injective, local": lambda config, seed: Local(
        config.heads, config.width // config.heads, 8, rngs=nnx.Rngs(seed)
    ),
}


def collisions(op: Callable[..., jax.Array], seed: int) -> float:
    """The share of random positive queries whose double has the same weights, to rounding."""
    k, q = jax.random.normal(jax.random.key(seed), (2, 1, 32, 4, 8))
    one, two = (attention_map(op, x, k) for x in (jnp.abs(q), 2 * jnp.abs(q)))
    same = jnp.abs(one - two).max(-1) < 1e-5 * jnp.abs(one).max(-1)
    return float(same.mean())


# --------------------------------------------------------------------------------------- runs


@dataclass(eq=False)
class Result:
    """Metrics of each seed; loss curves of text and images by name."""

    seeds: list[lab.Metrics]
    text: dict[str, list[np.ndarray]] = field(default_factory=dict)
    images: dict[str, list[np.ndarray]] = field(default_factory=dict)


def text_loss(graph: Any, params: Any, tokens: Any) -> jax.Array:
    """Nats per byte."""
    logits = nnx.merge(graph, params)(tokens[:, :-1])[0]
    return lab.cross_entropy(logits, tokens[:, 1:]).mean()


def image_scores(graph: Any, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """(loss in nats, accuracy)."""
    logits = nnx.merge(graph, params)(batch[0])[0]
    return lab.cross_entropy(logits, batch[1]).mean(), (logits.argmax(-1) == batch[1]).mean()


def run(config: Config) -> Result:
    """Trains on text and on images; goes on where it was interrupted."""
    folder = lab.results_folder(config.results)
    text = lab.read_text(config.text)
    same = replace(config, results=Path(), seeds=1, judged=1)
    runs = folder / "checkpoints" / lab.run_key(same, text.digest)
    result = Result([{} for _ in range(config.seeds)])
    with lab.Bars() as bars:
        read(config, text, runs, bars, result)
        look(config, runs, bars, result)
    for name in ("softmax", "divisive", "injective"):
        op = IMAGE[name](config, 0)
        for seed in range(config.seeds):
            result.seeds[seed][name]["collisions"] = collisions(op, seed)
    return result


def read(config: Config, text: lab.Text, runs: Path, bars: lab.Bars, result: Result) -> None:
    """Language models of bytes."""
    shape = lab.Shape(config.width, config.depth, config.heads, config.length)
    judged = lab.evenly(text.validation, config.length, config.judged)
    for name, recipe in TEXT.items():
        made = lambda seed, recipe=recipe: nnx.split(lab.TinyLM(shape, recipe, rngs=nnx.Rngs(seed)))
        loss = functools.partial(text_loss, made(0)[0])
        watch = bars.add(f"text: {name}", config.text_steps, config.seeds)
        for seed in range(config.seeds):
            trained = lab.train(
                made(seed)[1],
                loss,
                lambda step, s=seed: lab.windows(
                    text.train, config.length, config.text_batch, seed=s, step=step
                ),
                lab.Optimizer(config.text_steps, config.learning_rate, weight_decay=0.1),
                folder=runs / f"text-{name}-{seed}",
                watch=watch(seed),
            )
            result.text.setdefault(name, []).append(trained.losses)
            result.seeds[seed][name] = {"nats": float(jax.jit(loss)(trained.params, judged))}


def look(config: Config, runs: Path, bars: lab.Bars, result: Result) -> None:
    """Classifiers of digits, pixel by pixel."""
    shape = lab.Shape(config.width, config.depth, config.heads, 64)
    images = lab.digits()
    for name, make in IMAGE.items():
        made = lambda seed, make=make: nnx.split(
            lab.TinyViT(shape, make(config, seed), patch=1, rngs=nnx.Rngs(seed))
        )
        scores = functools.partial(image_scores, made(0)[0])
        watch = bars.add(f"digits: {name}", config.image_steps, config.seeds)
        for seed in range(config.seeds):

            def batches(step: int, seed: int = seed) -> tuple[np.ndarray, np.ndarray]:
                draw = np.random.default_rng((seed, step))
                chosen = draw.integers(0, len(images.train), config.image_batch)
                return images.train[chosen], images.train_labels[chosen]

            trained = lab.train(
                made(seed)[1],
                lambda params, batch, scores=scores: scores(params, batch)[0],
                batches,
                lab.Optimizer(config.image_steps, config.learning_rate, weight_decay=0.1),
                folder=runs / f"digits-{name}-{seed}",
                watch=watch(seed),
            )
            result.images.setdefault(name, []).append(trained.losses)
            accuracy = jax.jit(scores)(trained.params, (images.test, images.test_labels))[1]
            result.seeds[seed][name] = {"accuracy": float(accuracy)}


# --------------------------------------------------------------------------------- what it says


def difference(column: str, one: str, other: str) -> Callable[[lab.Metrics], float]:
    return lambda m: m[one][column] - m[other][column]


def value(column: str, name: str) -> Callable[[lab.Metrics], float]:
    return lambda m: m[name][column]


def claims() -> tuple[Claim, ...]:
    """Lower loss for each refinement; collisions; no worse than softmax on digits."""
    nats = lambda what, one: Claim(
        f"287: {what}: nats per byte, {one} - gla", "lower", difference("nats", one, "gla"),
        below(0),
    )  # fmt: skip
    share = lambda name, paper, criterion: Claim(
        f"383: {name}: share of doubled queries with the same weights", paper,
        value("collisions", name), criterion,
    )  # fmt: skip
    against = lambda name, paper: Claim(
        f"383: digits: accuracy, {name} - softmax", paper, difference("accuracy", name, "softmax"),
        above(-0.01),
    )  # fmt: skip
    return (
        nats("feature map", "safe features"),
        nats("gate", "refined gate"),
        nats("all", "regla"),
        share("divisive", "all", above(0.99)),
        share("injective", "none", below(0.01)),
        share("softmax", "none", below(0.01)),
        Claim(
            "383: digits: accuracy, injective - divisive", "better",
            difference("accuracy", "injective", "divisive"), above(0),
        ),
        against("injective, local", "matches or passes"),
    )  # fmt: skip


def main(config: Config) -> None:
    """Runs, judges the claims, and writes tables and plots; then checkpoints are not needed."""
    began = time.monotonic()
    result = run(config)
    lab.report(
        __doc__,
        claims(),
        result.seeds,
        config=config,
        folder=config.results,
        seconds=time.monotonic() - began,
        figures={
            "text": lab.loss_curves(result.text),
            "digits": lab.loss_curves(result.images, unit="nats per image"),
        },
    )
    shutil.rmtree(config.results / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
