"""Scores of eight bits cost a model of text nothing, after training, in tuning and in training.

    python -m experiments.core.eight_bits

  Zhang et al. 2024, "SageAttention", arXiv:2410.02367: attention with queries and keys of eight
      bits, keys without their mean, loses almost nothing end to end.
  Zhang et al. 2025, "SageAttention3", arXiv:2505.11594: outputs of attention in four bits with
      scales of 16 numbers are close to those of eight; training in eight bits is lossless in
      fine-tuning, but converges slower in pretraining.

Bytes of Python's library; fine-tuning is on the same text with upper and lower case exchanged.  The
trained model is judged with its attention exchanged as it is, with queries and keys of eight, two
and four bits.  Quantized blocks have 16 queries or keys.  Two bits show that rounding can be seen.
Eight bits are those of scores alone, forward: weights, values and backward products, which the
second paper rounds as well, are not rounded here, and gradients pass as if nothing was rounded.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flax import nnx

from attnjax import lab, masks
from attnjax.lab import Arm, Claim, Need, Task, above, below, of, tasks
from attnjax.ops.softmax_core import multi_head_attention, sage3_attention, sage_attention

PAPERS = (206, 177)


@dataclass(frozen=True)
class Config(lab.TextConfig):
    width: int = 64
    depth: int = 2
    heads: int = 4
    length: int = 64
    block: int = 16  # queries or keys with one scale
    steps: int = 500
    tuned: int = 150  # steps of fine-tuning
    batch: int = 16
    results: Path = Path("results/eight_bits")


QUICK = replace(Config(), seeds=1, depth=1, steps=100, tuned=30, length=32, judged=32)


def swapped(batch: tasks.Batch) -> tasks.Batch:
    """Upper and lower case exchanged."""
    table = np.arange(256, dtype=np.int32)
    upper, lower = table[65:91].copy(), table[97:123].copy()
    table[65:91], table[97:123] = lower, upper
    return (table[batch[0]],)


def attentions(c: Config) -> dict[str, lab.Mixer]:
    sage = functools.partial(sage_attention, mask=masks.causal, block_q=c.block, block_k=c.block)
    return {
        "full": functools.partial(multi_head_attention, mask=masks.causal),
        "8 bits": sage,
        "2 bits": functools.partial(sage, bits=2),
        "fp4": functools.partial(sage3_attention, mask=masks.causal, block_q=c.block),
    }


def studied(c: Config) -> dict[str, Task]:
    text = tasks.Bytes.of(c)
    shape = lab.Shape(c.width, c.depth, c.heads, c.length)
    make = {
        name: lambda seed, op=op: lab.TinyLM(shape, op, rngs=nnx.Rngs(seed))
        for name, op in attentions(c).items()
    }

    def instead(name, steps):
        return Arm(lambda seed, old: lab.like(make[name](seed), old), "text: full", steps)

    trained = {"full": make["full"], "8 bits from the start": make["8 bits"]}
    judged = {name: instead(name, 0) for name in ("8 bits", "2 bits", "fp4")}
    tuned = {name: instead(name, c.tuned) for name in ("full", "8 bits", "2 bits")}
    batch = lambda seed, step: swapped(text.batch(seed, step))
    unit = "nats per byte"
    return {
        "text": Task(text.batch, tasks.next_byte, text.held, c.steps, trained | judged, unit),
        "tuned": Task(batch, tasks.next_byte, swapped(text.held), c.tuned,
                      {"untuned": instead("full", 0), **tuned}, unit),
    }  # fmt: skip


def claims(c: Config) -> tuple[Claim, ...]:
    text = lambda arm: of(f"text: {arm}", "nats") - of("text: full", "nats")
    tuned = lambda arm: of(f"tuned: {arm}", "nats") - of("tuned: full", "nats")
    seen = Need("two bits cost something", text("2 bits"), above(0.02))
    felt = Need("tuning in two bits costs something", tuned("2 bits"), above(0.02))
    helps = Need("tuning helps", tuned("untuned"), above(0.3))
    return (
        Claim("a trained model with scores of 8 bits is as good", "almost none", text("8 bits"),
              below(0.005), (seen,)),
        Claim("with attention of four bits it is nearly as good", "close to 8 bits", text("fp4"),
              below(0.02), (seen,)),
        Claim("fine-tuned with scores of 8 bits it is as good", "lossless", tuned("8 bits"),
              below(0.01), (felt, helps)),
        Claim("trained from the start with scores of 8 bits it is as good", "slower",
              text("8 bits from the start"), below(0.02), (seen,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
