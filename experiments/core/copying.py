"""Attention learns to copy before a recurrent network does, and wide heads need 1 / sqrt(H).

    python -m experiments.core.copying

  Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762: attention alone is better than
      recurrent models and takes less training; without the scale 1 / sqrt(H) products of wide
      heads are so large that softmax has small gradients, and additive attention was better.

Random tokens, a bar, and the same tokens once more, which are asked for.  The recurrent arm
has a GRU in the place of attention, as wide as the stream; others have one head each, of `narrow`
or `broad` numbers.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from flax import nnx

from attnjax import attend, lab, masks
from attnjax.experiments.core._gru import GRU
from attnjax.lab import Claim, Need, Task, above, of, tasks
from attnjax.nn import Attention

PAPERS = (205,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 64
    depth: int = 1
    heads: int = 4
    narrow: int = 4  # numbers in the one head of an arm
    broad: int = 256
    length: int = 12  # tokens to copy
    values: int = 16
    steps: int = 400
    batch: int = 32
    results: Path = Path("results/copying")


QUICK = replace(Config(), seeds=1, steps=100, length=6)


def one_head(head_width: int, scale: float | None) -> lab.Layer:
    """Causal attention of one head; None for 1 / sqrt(H)."""
    op = functools.partial(attend, mask=masks.causal, scale=scale)

    def make(width, heads, *, gate, rngs):
        return Attention(width, 1, attend=op, head_width=head_width, gate=gate, rngs=rngs)

    return lab.Layer(make)


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, 2 * c.length)

    def model(mixer):
        return lambda seed: lab.TinyLM(shape, mixer, vocab=c.values + 1, rngs=nnx.Rngs(seed))

    arms = {
        "attention": model(functools.partial(attend, mask=masks.causal)),
        "recurrent": model(lab.Layer(cast(Any, GRU))),
    }
    for name, width in (("narrow", c.narrow), ("broad", c.broad)):
        arms[name] = model(one_head(width, None))
        arms[f"{name}, no scale"] = model(one_head(width, 1.0))
    drawn = lambda count: tasks.copy(count, c.length, c.values)
    held = drawn(c.judged)(tasks.HELD, 0)
    return {"copy": Task(drawn(c.batch), tasks.answers, held, c.steps, arms, "nats per token")}


def claims(c: Config) -> tuple[Claim, ...]:
    nats = lambda arm: of(arm, "nats")
    learned = lambda arm: Need(f"{arm} has learned to copy", of(arm, "accuracy"), above(0.9))
    return (
        Claim("attention has learned to copy where a recurrent network has not", "less training",
              of("attention", "accuracy") - of("recurrent", "accuracy"), above(0.3),
              (learned("attention"),)),
        Claim("without 1 / sqrt(H) a broad head learns worse", "small gradients",
              nats("broad, no scale") - nats("broad"), above(0.1), (learned("broad"),)),
        Claim("it costs a broad head more than a narrow one", "for large H",
              nats("broad, no scale") - nats("broad")
              - (nats("narrow, no scale") - nats("narrow")), above(0.1), (learned("broad"),)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
