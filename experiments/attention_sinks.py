"""Attention sinks: which ones a small language model grows, and which mechanisms avoid them.

    python -m experiments.attention_sinks            # two CPU cores: 6 to 15 minutes
    python -m experiments.attention_sinks --quick    # two CPU cores: about 1 minute; what CI runs

TinyLM on bytes of Python's standard library, once with each of: softmax; softmax_one, which adds
one to the denominator; softpick; sigmoid; and clipped softmax with a gate on each head.

  Zuhri et al. 2025, "Softpick", arXiv:2504.20966v1: sink rate 0 %, kurtosis 340 against 33,510
      with softmax, 46.97 % of the attention map exactly zero, at parity of loss.
  Gu et al. 2024, "When Attention Sink Emerges in Language Models", arXiv:2410.10781, and Ramapuram
      et al. 2024, "Sigmoid Self-Attention", arXiv:2409.04431: sigmoids, not normalized, grow no
      sink, and match softmax.
  Bondarenko et al. 2023, "Quantizable Transformers", arXiv:2306.12929: clipped softmax and gates
      give smaller outliers, so that int8 rounding of activations costs less.
  Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453: a
      window that evicts the first tokens loses much; four first tokens kept largely restore it.
  Wong et al. 2025, "On the Existence and Behaviour of Secondary Attention Sinks",
      arXiv:2512.22213v1: other keys become sinks too, from middle layers on, and draw less.

Seen at this size: no head of the softmax model gives its first key more than 0.3, the threshold of
a sink, and its residual stream has no outliers (kurtosis under 4; 3 is normal).  So what removes
outliers has nothing to remove, and those claims fail; that takes models a thousand times larger.
What softpick, sigmoid and the added one do to the first key's weight (a quarter, a twelfth and half
of softmax's), and what evicting the first tokens costs, shows already.
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

from attnjax import attend, lab, masks, normalizers
from attnjax.lab import Claim, above, below
from attnjax.nn import HeadGate
from attnjax.ops.kv_decode import sink_window_attention
from attnjax.ops.softmax_core import (
    clipped_softmax_attention,
    multi_head_attention,
    softpick_attention,
)
from attnjax.probes import (
    attention_map,
    int8_round,
    kurtosis,
    largest_activation,
    secondary_sinks,
    sink_rate,
    sink_scores,
    sparsity,
)

PAPERS = (141, 247, 355, 394)


@dataclass(frozen=True)
class Config:
    """Sizes of the model and of the training; the defaults are the full run."""

    variants: tuple[str, ...] = ("softmax", "softmax_one", "softpick", "sigmoid", "clipped_gated")
    seeds: int = 3
    steps: int = 2500
    batch: int = 4  # sequences a step
    width: int = 64
    depth: int = 4
    heads: int = 4
    length: int = 128  # bytes
    learning_rate: float = 5e-3
    weight_decay: float = 0.1
    judged: int = 128  # validation sequences
    text: Path | None = None  # a file or a folder; default: Python's standard library
    results: Path = Path("results/attention_sinks")

    def __post_init__(self):
        lab.positive(self, "seeds steps batch width depth heads length judged")


QUICK = replace(Config(), seeds=1, steps=500, depth=3, judged=32)


@dataclass(frozen=True)
class Mechanism:
    """An attention function for a sequence length, and a gate on the heads or none."""

    attend: Callable[[int], Callable[..., jax.Array]]
    gate: Callable[..., HeadGate] | None = None


def softmax(length: int) -> Callable[..., jax.Array]:
    return functools.partial(multi_head_attention, mask=masks.causal)


def softmax_one(length: int) -> Callable[..., jax.Array]:
    return functools.partial(attend, mask=masks.causal, normalizer=normalizers.softmax_one)


def softpick(length: int) -> Callable[..., jax.Array]:
    return softpick_attention


def sigmoid(length: int) -> Callable[..., jax.Array]:
    # The bias -log(length) makes a row sum to about one at the start, as a softmax does.
    bias = normalizers.sigmoid(-float(np.log(length)))
    return functools.partial(attend, mask=masks.causal, normalizer=bias)


def clipped(length: int) -> Callable[..., jax.Array]:
    # The paper's gamma is -alpha / T with alpha from 2 to 4, for rows of T keys; causal rows are
    # half as long on average, so alpha = 1.  Weights under about 1 / T become zero.
    return functools.partial(clipped_softmax_attention, gamma=-1 / length, mask=masks.causal)


MECHANISMS = {
    "softmax": Mechanism(softmax),
    "softmax_one": Mechanism(softmax_one),
    "softpick": Mechanism(softpick),
    "sigmoid": Mechanism(sigmoid),
    "clipped_gated": Mechanism(clipped, HeadGate),
}
MEASURES = ("loss", "int8 cost", "sink rate", "first key", "largest", "kurtosis", "zeros")
EVICTED, RESTORED = "softmax, window", "softmax, 4 sinks"


@dataclass(eq=False)
class Result:
    """Metrics of each seed; loss curves and the last layer's maps by variant."""

    seeds: list[lab.Metrics]
    losses: dict[str, list[np.ndarray]] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)


def model(config: Config, op: Callable[..., jax.Array], gate: Any, seed: int) -> tuple[Any, Any]:
    """(graph, parameters) of a TinyLM around `op`; the parameters do not depend on the op."""
    shape = lab.Shape(config.width, config.depth, config.heads, config.length)
    return nnx.split(lab.TinyLM(shape, op, gate=gate, rngs=nnx.Rngs(seed)))


def loss_of(graph: Any, params: Any, tokens: jax.Array, edit: Any = lab.unedited) -> jax.Array:
    """Nats per byte of next-byte prediction on (B, length + 1) tokens."""
    logits, _ = nnx.merge(graph, params)(tokens[:, :-1], edit)
    return lab.cross_entropy(logits, tokens[:, 1:]).mean()


def probe(graph: Any, op: Any, params: Any, tokens: jax.Array) -> dict[str, jax.Array]:
    """Everything that is measured of one model on (B, length + 1) tokens, as arrays."""
    logits, seen = nnx.merge(graph, params)(tokens[:, :-1])
    loss = lab.cross_entropy(logits, tokens[:, 1:]).mean()
    rounded = loss_of(graph, params, tokens, lambda name, x: int8_round(x))
    few = lambda x: x[:, :16]
    maps = jax.vmap(functools.partial(attention_map, op))(few(seen["q"]), few(seen["k"]))
    allowed = jnp.asarray(masks.causal.dense(*maps.shape[-2:]))
    return {
        "loss": loss,
        "int8 cost": rounded - loss,
        "sink rate": sink_rate(maps),
        "first key": sink_scores(maps)[..., 0].mean(),
        "largest": largest_activation(seen["residual"]),
        "kurtosis": jax.vmap(kurtosis)(seen["residual"]).mean(),
        "zeros": sparsity(maps, allowed),
        "maps": maps,
    }


def run(config: Config) -> Result:
    """Trains every variant with every seed and measures it; goes on where it was interrupted."""
    chosen = lab.choose("variants", config.variants, MECHANISMS)
    if "softmax" not in chosen:
        raise lab.UserError(f"variants: got {' '.join(chosen)}, expected softmax to compare with")
    folder = lab.results_folder(config.results)
    text = lab.read_text(config.text)
    judged = jnp.asarray(lab.evenly(text.validation, config.length, config.judged))
    same = replace(config, results=Path(), variants=(), seeds=1, judged=1)
    key = lab.run_key(same, text.digest)  # of what decides a single run
    optimizer = lab.Optimizer(config.steps, config.learning_rate, config.weight_decay)
    result = Result([{} for _ in range(config.seeds)])
    with lab.Bars() as bars:
        watches = {name: bars.add(name, config.steps, config.seeds) for name in chosen}
        for name, mechanism in chosen.items():
            op = mechanism.attend(config.length)
            graph, _ = model(config, op, mechanism.gate, 0)
            look = jax.jit(functools.partial(probe, graph, op))
            for seed in range(config.seeds):
                draw = lambda step, s=seed: lab.windows(
                    text.train, config.length, config.batch, seed=s, step=step
                )
                trained = lab.train(
                    model(config, op, mechanism.gate, seed)[1],
                    functools.partial(loss_of, graph),
                    draw,
                    optimizer,
                    folder=folder / "checkpoints" / key / f"{name}-{seed}",
                    watch=watches[name](seed),
                )
                result.losses.setdefault(name, []).append(trained.losses)
                found = jax.device_get(look(trained.params, judged))
                maps = found.pop("maps")
                result.maps.setdefault(name, maps[-1, 0])
                metrics = {measure: float(found[measure]) for measure in MEASURES}
                if name == "softmax":
                    metrics["secondary"] = secondary(maps)
                    result.seeds[seed] |= evictions(config, trained.params, judged)
                result.seeds[seed][name] = metrics
    for seed, metrics in enumerate(result.seeds):
        order = [*chosen, *(name for name in metrics if name not in chosen)]
        result.seeds[seed] = {name: metrics[name] for name in order}
    return result


def secondary(maps: np.ndarray) -> float:
    """Secondary sinks in a sequence, on average; maps (layers, B, N, T, S)."""
    return float(np.mean([len(secondary_sinks(maps[:, b])) for b in range(maps.shape[1])]))


def evictions(config: Config, params: Any, tokens: jax.Array) -> lab.Metrics:
    """Loss of the trained softmax model with an eighth of its keys: the last, or 4 first too."""
    budget = max(config.length // 8, 5)
    ops = {
        EVICTED: functools.partial(multi_head_attention, mask=masks.window(budget - 1)),
        RESTORED: functools.partial(sink_window_attention, sinks=4, window=budget - 4),
    }
    graphs = {name: model(config, op, None, 0)[0] for name, op in ops.items()}
    return {
        name: {"loss": float(jax.jit(functools.partial(loss_of, graph))(params, tokens))}
        for name, graph in graphs.items()
    }


def difference(measure: str, name: str) -> Callable[[lab.Metrics], float]:
    """The measure of a variant minus that of softmax."""
    return lambda m: m[name][measure] - m["softmax"][measure]


def ratio(measure: str, name: str) -> Callable[[lab.Metrics], float]:
    """The measure of a variant over that of softmax."""
    return lambda m: m[name][measure] / m["softmax"][measure]


def evicting(m: lab.Metrics) -> float:
    """The loss that eviction of the first tokens adds to the trained softmax model."""
    return m[EVICTED]["loss"] - m["softmax"]["loss"]


def restored(m: lab.Metrics) -> float:
    """The share of the loss by eviction that four sinks give back."""
    return (m[EVICTED]["loss"] - m[RESTORED]["loss"]) / evicting(m)


def compared(name: str, words: str) -> tuple[Claim, ...]:
    """Parity of loss: within 0.05 nats per byte, since two seeds of softmax differ by as much."""
    return (Claim(f"{words}: loss - softmax's", "parity", difference("loss", name), below(0.05)),)


CLAIMS = {
    "softmax": (
        Claim("softmax: heads that sink", "most", lambda m: m["softmax"]["sink rate"], above(0.5)),
        Claim("first tokens evicted: added loss", "fails", evicting, above(0.05)),
        Claim("share that 4 sinks restore", "largely", restored, above(0.5)),
        Claim("secondary sinks a text", "exist", lambda m: m["softmax"]["secondary"], above(0.5)),
    ),
    "softmax_one": (
        Claim(
            "softmax_one: first key / softmax's",
            "less",
            ratio("first key", "softmax_one"),
            below(1),
        ),
        *compared("softmax_one", "softmax_one"),
    ),
    "softpick": (
        Claim("softpick: sink rate", "0 %", lambda m: m["softpick"]["sink rate"], below(0.01)),
        Claim("softpick: first key / softmax's", "0", ratio("first key", "softpick"), below(1)),
        Claim("softpick: kurtosis / softmax's", "0.01", ratio("kurtosis", "softpick"), below(1)),
        Claim("softpick: zeros in the map", "47 %", lambda m: m["softpick"]["zeros"], above(0.3)),
        *compared("softpick", "softpick"),
    ),
    "sigmoid": (
        Claim("sigmoid: sink rate", "0 %", lambda m: m["sigmoid"]["sink rate"], below(0.01)),
        *compared("sigmoid", "sigmoid"),
    ),
    "clipped_gated": (
        Claim(
            "clipped: largest / softmax's",
            "far smaller",
            ratio("largest", "clipped_gated"),
            below(1),
        ),
        Claim(
            "clipped: int8 cost - softmax's",
            "far smaller",
            difference("int8 cost", "clipped_gated"),
            below(0),
        ),
        *compared("clipped_gated", "clipped"),
    ),
}
PANELS = {
    "loss": "validation loss (nats per byte)",
    "int8 cost": "loss added by int8 (nats per byte)",
    "first key": "mean weight of the first key",
    "largest": "largest activation (absolute)",
    "kurtosis": "kurtosis of the residual stream",
    "zeros": "exact zeros (share of allowed pairs)",
}


def main(config: Config) -> None:
    """Runs, judges the claims, and writes tables and plots; then checkpoints are not needed."""
    began = time.monotonic()
    result = run(config)
    figures = {
        "loss": lab.loss_curves(result.losses),
        "maps": lab.attention_maps(result.maps, title="attention of the last layer, one text"),
        "measures": lab.bars(result.seeds, PANELS),
    }
    claims = [claim for name in config.variants for claim in CLAIMS[name]]
    seconds = time.monotonic() - began
    lab.report(
        __doc__, claims, result.seeds,
        config=config, folder=config.results, seconds=seconds, figures=figures,
    )  # fmt: skip
    shutil.rmtree(config.results / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
