"""Dual triangle attention reads in both directions and still knows positions, without codes.

    python -m experiments.position.dual_triangle

  Hallee and Gleghorn 2026, "Dual Triangle Attention: Effective Bidirectional Attention Without
      Positional Embeddings", arXiv:2604.18603v1: without position embeddings, dual triangle and
      causal attention learn the argmax position probe and standard bidirectional attention cannot;
      in masked language modeling dual triangle is strong with or without position embeddings.

The probe: random tokens and a question, whose output has to name the place of the largest token.
Full attention without codes gives every order of the tokens the same answer, so its accuracy is
what chance gives.  Then bytes of text, a seventh of them hidden, to be filled in from both sides.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from flax import nnx

from attnjax import lab, masks
from attnjax.lab import Claim, Need, Task, above, below, of, tasks
from attnjax.ops.position import dual_triangle_attention
from attnjax.ops.softmax_core import multi_head_attention

PAPERS = (378,)


@dataclass(frozen=True)
class Config(lab.TextConfig):
    places: int = 16  # of the probe; chance is one in as many
    values: int = 64  # that the probe's tokens can take
    probe_steps: int = 2000
    probe_batch: int = 64
    length: int = 64  # bytes of text
    text_steps: int = 2000
    batch: int = 16  # texts a step
    results: Path = Path("results/dual_triangle")

    def __post_init__(self):
        super().__post_init__()
        if not self.places <= self.values < 256:
            raise lab.UserError(
                f"values: got {self.values}, expected {self.places} to 255 (places)"
            )


QUICK = replace(Config(), seeds=1, probe_steps=400, text_steps=300, judged=64)


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, max(c.places + 1, c.length))

    def model(op, positions="none"):
        sized = replace(shape, positions=positions)
        return lambda seed: lab.TinyLM(sized, op, rngs=nnx.Rngs(seed))

    causal = functools.partial(multi_head_attention, mask=masks.causal)
    full, dual = multi_head_attention, dual_triangle_attention
    text = tasks.Bytes.of(c)
    return {
        "probe": Task(
            tasks.argmax(c.probe_batch, c.places, c.values),
            tasks.answers,
            tasks.argmax(1024, c.places, c.values)(tasks.HELD, 0),
            c.probe_steps,
            {"full": model(full), "causal": model(causal), "dual": model(dual)},
            unit="nats per answer",
        ),
        "text": Task(
            text.masked,
            tasks.hidden_byte,
            text.held_masked,
            c.text_steps,
            {
                "full, codes": model(full, "learned"),
                "full": model(full),
                "dual": model(dual),
                "dual, codes": model(dual, "learned"),
            },
            unit="nats per hidden byte",
        ),
    }


def claims(c: Config) -> tuple[Claim, ...]:
    accuracy = lambda arm: of(f"probe: {arm}", "accuracy")
    nats = lambda arm: of(f"text: {arm}", "nats")
    codes_help = Need("codes help full attention", nats("full") - nats("full, codes"), above(0.1))
    return (
        Claim("the probe: causal learns it, full cannot", "learns",
              accuracy("causal") - accuracy("full"), above(0.4)),
        Claim("the probe: dual learns it, full cannot", "learns",
              accuracy("dual") - accuracy("full"), above(0.4)),
        Claim("text: dual without codes is as good as full with them", "strong",
              nats("dual") - nats("full, codes"), below(0.05), (codes_help,)),
        Claim("text: dual with codes is as good as full with them", "strong",
              nats("dual, codes") - nats("full, codes"), below(0.05), (codes_help,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
