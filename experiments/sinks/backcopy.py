"""Attention sinks: where heads have nothing to do they park their weight, and what prevents it.

    python -m experiments.sinks.backcopy

  Guo et al. 2024, "Active-Dormant Attention Heads", arXiv:2410.13835: where a token is to be copied
      after triggers alone, softmax heads of one layer are dormant elsewhere: the first key, whose
      value is small, draws their weight.
  Zhuri et al. 2025, "Softpick", arXiv:2504.20966v1: sink rate 0 %, at parity of loss.
  Gu et al. 2024, "When Attention Sink Emerges in Language Models", arXiv:2410.10781, and Ramapuram
      et al. 2024, "Sigmoid Self-Attention", arXiv:2409.04431: sigmoids, not normalized, grow no
      sink, and match softmax.
  Bondarenko et al. 2023, "Quantizable Transformers", arXiv:2306.12929: clipped softmax and gates
      let heads do nothing; outliers become smaller, so that int8 activations cost less.

"first key" is the mean weight of START where no token is copied, of the head that gives it most;
"sink rate" the share of heads that give it more than 0.3; "value" the norm of START's value over
the mean of others; "evicted" the loss that is added when a query sees the latest eighth of the keys
alone.  "blind" sees its own token only, so it cannot copy: what attention is worth.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, lab, masks, normalizers, probes
from attnjax.lab import Claim, Need, Task, above, below, of, tasks
from attnjax.nn import HeadGate
from attnjax.ops.softmax_core import (
    clipped_softmax_attention,
    multi_head_attention,
    softpick_attention,
)

PAPERS = (141, 247)


@dataclass(frozen=True)
class Config(lab.TextConfig):
    depth: int = 1
    heads: int = 1
    length: int = 64
    batch: int = 32
    steps: int = 2000
    learning_rate: float = 1.5e-3
    results: Path = Path("results/backcopy")


QUICK = replace(Config(), seeds=1, steps=300, batch=16, judged=32)


def mechanisms(length):
    """Name -> (attention, gate)."""
    causal = functools.partial(functools.partial, mask=masks.causal)
    # The bias -log(length) makes a row sum to about one at the start, as a softmax does.
    sigmoid = normalizers.sigmoid(-float(np.log(length)))
    # The paper's gamma is -alpha / T for rows of T keys; weights under about 1 / T become zero.
    clipped = causal(clipped_softmax_attention, gamma=-1 / length)
    return {
        "softmax": (causal(multi_head_attention), None),
        "blind": (functools.partial(attend, mask=masks.window(0, 0)), None),
        "softmax_one": (causal(attend, normalizer=normalizers.softmax_one), None),
        "softpick": (causal(softpick_attention), None),
        "sigmoid": (causal(attend, normalizer=sigmoid), None),
        "clipped, gated": (clipped, HeadGate),
    }


def look(asks, model, batch):
    """Loss, and everything about sinks."""
    (tokens,) = batch
    given, attention = tokens[:, :-1], model.stack.blocks[0].attention.attend
    logits, seen = model(given)
    losses = lab.cross_entropy(logits, tokens[:, 1:])
    rounded, _ = model(given, lambda name, x: probes.int8_round(x))
    int8 = lab.cross_entropy(rounded, tokens[:, 1:])
    evicted = functools.partial(attention, mask=masks.window(given.shape[1] // 8 - 1))
    maps = jax.vmap(functools.partial(probes.attention_map, attention))(seen["q"], seen["k"])
    dormant = (~asks(given)).at[:, 0].set(False)  # START sees nothing else
    first = (maps[..., 0] * dormant[:, None]).sum((1, 3)) / dormant.sum()  # layer, head
    norms = jnp.linalg.norm(seen["v"], axis=-1)
    if attention.keywords["mask"] is masks.causal:  # else none is evicted
        model.stack.blocks[0].attention.attend = evicted
    without = lab.cross_entropy(model(given)[0], tokens[:, 1:])
    return {
        "nats": losses.mean(),
        "nats, copies": tasks.share(losses, asks(given)),
        "evicted": without.mean() - losses.mean(),
        "first key": first.max(),
        "sink rate": probes.sink_rate(maps),
        "value": (norms[:, :, 0].mean(1) / norms[:, :, 1:].mean((1, 2))).mean(),
        "int8 cost": int8.mean() - losses.mean(),
        "kurtosis": jax.vmap(probes.kurtosis)(seen["residual"]).max(),
        "zeros": probes.sparsity(maps, masks.causal.dense(*maps.shape[-2:])),
        "maps": maps[-1, 0],
    }


def studied(c):
    task = tasks.Backcopy(lab.read_text(c.text), c.length, c.batch)
    shape = lab.Shape(c.width, c.depth, c.heads, c.length)

    def model(op, gate):
        return lambda seed: lab.TinyLM(
            shape, op, gate=gate, vocab=task.vocabulary, rngs=nnx.Rngs(seed)
        )

    held = replace(task, count=c.judged).batch(tasks.HELD, 0)
    arms = {name: model(*made) for name, made in mechanisms(c.length).items()}
    score = functools.partial(look, task.asks)
    return {"backcopy": Task(task.batch, score, held, c.steps, arms, unit="nats per token")}


def claims(c):
    first, evicted, nats, cost, kurtosis = (
        functools.partial(of, measure=name)
        for name in ("first key", "evicted", "nats", "int8 cost", "kurtosis")
    )
    depends = Need("softmax depends on the first key", evicted("softmax"), above(0.05))
    sink = Need("softmax has a sink", first("softmax") - first("blind"), above(0.2))
    helps = Need("attention helps", nats("blind") - nats("softmax"), above(0.1))
    costs = Need("int8 costs softmax something", cost("softmax"), above(0.01))
    peaks = Need("softmax has outliers", kurtosis("softmax"), above(10))
    gated = "clipped, gated"
    told = [
        Claim("softmax loses when the first key is evicted, a gated head does not", "dormant",
              evicted("softmax") - evicted(gated), above(0.05)),
        Claim("softmax parks weight on the first key, a gated head does not", "a sink",
              first("softmax") - first(gated), above(0.2)),
        Claim("the sink's value is small", "small", of("softmax", "value") / of(gated, "value"),
              below(0.7), (sink,)),
    ]  # fmt: skip
    for arm, words in (("softpick", "0 %"), ("sigmoid", "no sink"), ("softmax_one", "no sink"),
                       (gated, "no no-ops")):  # fmt: skip
        told += [
            Claim(f"{arm}: loses at most half as much when the first key is evicted", words,
                  evicted(arm) / evicted("softmax"), below(0.5), (depends,)),
            Claim(f"{arm}: at most half the weight on the first key", words,
                  first(arm) / first("softmax"), below(0.5), (sink,)),
            Claim(f"{arm}: as good as softmax", "parity",
                  nats(arm) - nats("softmax"), below(0.02), (helps,)),
        ]  # fmt: skip
    return [
        *told,
        Claim(f"{gated}: int8 costs at most half", "far less", cost(gated) / cost("softmax"),
              below(0.5), (costs,)),
        Claim(f"{gated}: kurtosis at most half", "far less", kurtosis(gated) / kurtosis("softmax"),
              below(0.5), (peaks,)),
        Claim("softpick: kurtosis at most half", "340 / 33510",
              kurtosis("softpick") / kurtosis("softmax"), below(0.5), (peaks,)),
    ]  # fmt: skip


def figures(c, result):
    maps = {row: arrays["maps"] for row, arrays in result.arrays.items()}
    return {"maps": lab.attention_maps(maps, title="attention over one text")}


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims, figures)

if __name__ == "__main__":
    STUDY.main()
