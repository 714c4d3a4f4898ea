"""A bounded feature map and a refined forget gate each improve gated linear attention.

    python -m experiments.linear.refined_gates

  Lu et al. 2025, "ReGLA: Refining Gated Linear Attention", arXiv:2502.01578: a feature map of safe
      exponentials, a norm of each head's output, and a gate that does not saturate; together they
      outperform earlier gated linear attention, and each helps.

Models of bytes that differ in the features of queries and keys and in the forget gate.  All gates
begin near one, and all norm each head's output, which is the paper's other refinement.  The margin
of a claim is one percent of the loss of a small model, about two nats per byte.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from attnjax import lab
from attnjax.lab import Claim, Task, above, of, tasks
from attnjax.nn import Gate, Recipe, recipes
from attnjax.ops.linear_recurrent import gla
from attnjax.ops.linear_recurrent.regla import log_refined_gate, safe_exp

PAPERS = (287,)

MARGIN = 0.02  # nats per byte


@dataclass(frozen=True)
class Config(lab.TextConfig):
    depth: int = 2
    heads: int = 2
    length: int = 128  # bytes of text
    steps: int = 500
    batch: int = 8
    results: Path = Path("results/refined_gates")


QUICK = replace(Config(), seeds=1, width=16, depth=1, length=48, steps=100, judged=32)

_PLAIN = {"log_decay": Gate(jax.nn.log_sigmoid, bias=4.0, channels=True)}


def _refined_gate(q: Any, k: Any, v: Any, gate: Any, refine: Any, **state: Any) -> Any:
    return gla(q, k, v, log_refined_gate(gate, refine), **state)


def _safe_features(q: Any, k: Any, v: Any, log_decay: Any, **state: Any) -> Any:
    return gla(safe_exp(q), safe_exp(k), v, log_decay, **state)


ARMS = {
    "gla": Recipe(gla, gates=_PLAIN),
    "safe features": Recipe(_safe_features, gates=_PLAIN),
    "refined gate": Recipe(_refined_gate, gates=recipes.regla.gates),
    "regla": recipes.regla,
}


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, c.length)

    def model(recipe):
        return lambda seed: lab.TinyLM(shape, recipe, rngs=nnx.Rngs(seed))

    text = tasks.Bytes.of(c)
    arms = {name: model(recipe) for name, recipe in ARMS.items()}
    return {"text": Task(text.batch, tasks.next_byte, text.held, c.steps, arms, "nats per byte")}


def claims(c: Config) -> tuple[Claim, ...]:
    saved = lambda arm: of("gla", "nats") - of(arm, "nats")
    return (
        Claim("safe features have a lower loss", "each helps", saved("safe features"),
              above(MARGIN)),
        Claim("the refined gate has a lower loss", "each helps", saved("refined gate"),
              above(MARGIN)),
        Claim("both together have a lower loss", "outperforms", saved("regla"), above(MARGIN)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
