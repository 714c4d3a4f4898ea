"""Streaming with a window: the first tokens are sinks, and a few of them have to be kept.

    python -m experiments.sinks.streaming

  Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453: a
      window that evicts the first tokens loses much, and four first tokens kept restore it.

A model with softmax is trained with all keys, on bigram-backcopy (where heads need a sink) and on
text, and judged with as many keys as fit a cache of an eighth: the latest; four first ones and the
latest; or, as a control, four others (the ninth to the twelfth) and the latest.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from flax import nnx

from attnjax import attend, lab, masks
from attnjax.lab import Arm, Claim, Need, Task, above, of, tasks

PAPERS = (355,)

KEPT = 4


@dataclass(frozen=True)
class Config(lab.TextConfig):
    seeds: int = 5
    length: int = 64  # tokens of bigram-backcopy
    batch: int = 32
    steps: int = 2000
    text_length: int = 128
    text_depth: int = 4
    text_batch: int = 4
    text_steps: int = 2000
    results: Path = Path("results/streaming")

    def __post_init__(self):
        super().__post_init__()
        if min(self.length, self.text_length) < 8 * (KEPT + 1):
            raise lab.UserError(f"length: got {self.length}, expected at least {8 * (KEPT + 1)}")


QUICK = replace(
    Config(), seeds=1, steps=300, batch=16, text_depth=2, text_steps=200, text_length=64, judged=32
)


def caches(length):
    """Name -> which keys a query sees."""
    budget = length // 8
    few = masks.window(budget - KEPT - 1)
    others = masks.fn(lambda i, j: (j >= 2 * KEPT) & (j < 3 * KEPT)) & masks.causal
    return {
        "window": masks.window(budget - 1),
        "4 first": masks.causal & (few | masks.sinks(KEPT)),
        "4 others": few | others,
    }


def arms(shape, vocabulary, title):
    """The model with all keys, and its judgement with fewer."""

    def model(mask):
        op = functools.partial(attend, mask=mask)
        return lambda seed: lab.TinyLM(shape, op, vocab=vocabulary, rngs=nnx.Rngs(seed))

    judged = {
        name: Arm(lambda seed, all, mask=mask: lab.like(model(mask)(seed), all), f"{title}: all", 0)
        for name, mask in caches(shape.length).items()
    }
    return {"all": model(masks.causal), **judged}


def studied(c):
    copies = tasks.Backcopy(lab.read_text(c.text), c.length, c.batch)
    text = tasks.Bytes(lab.read_text(c.text), c.text_length, c.text_batch, c.judged)
    small = lab.Shape(c.width, 1, 1, c.length)
    large = lab.Shape(c.width, c.text_depth, c.heads, c.text_length)
    held = replace(copies, count=c.judged).batch(tasks.HELD, 0)
    return {
        "backcopy": Task(copies.batch, tasks.next_byte, held, c.steps,
                         arms(small, copies.vocabulary, "backcopy"), "nats per token",
                         lab.Optimizer(c.steps, 1.5e-3, weight_decay=0.1)),
        "text": Task(text.batch, tasks.next_byte, text.held, c.text_steps,
                     arms(large, 256, "text"), "nats per byte"),
    }  # fmt: skip


def claims(c):
    told = []
    for title in ("backcopy", "text"):
        nats = lambda arm, title=title: of(f"{title}: {arm}", "nats")
        lost = nats("window") - nats("all")
        evicting = Need("evicting the first tokens costs", lost, above(0.02))
        back = lambda arm, nats=nats, lost=lost: (nats("window") - nats(arm)) / lost
        told += [
            Claim(f"{title}: a window that evicts the first tokens loses", "explodes",
                  lost, above(0.05)),
            Claim(f"{title}: four first tokens give back more than half of it", "restores",
                  back("4 first"), above(0.5), (evicting,)),
            Claim(f"{title}: four others give back less, by a quarter of it", "-",
                  back("4 first") - back("4 others"), above(0.25), (evicting,)),
        ]  # fmt: skip
    return told


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
