"""A few dense rows move the outputs of a sparse prompt so that full attention can read them.

    python -m experiments.sparse.delta

  Willette, Lee and Hwang 2025, "Delta Attention: Fast and Accurate Sparse Attention Inference by
      Delta Correction", arXiv:2505.11254: a prompt read with a window and sinks gives outputs of
      another distribution, which what is generated with full attention cannot use; every gamma-th
      row, computed densely, corrects those behind it, without training: 36 points more on RULER.

Text in which some tokens are needles.  The trained full model reads its first three quarters with a
window and sinks, corrected or not; the rest, questions for the needles at its end, it reads as
tokens that are generated: with full attention.  "cosine" compares the outputs of rows that only
the window has computed with full attention's for the same queries, keys and values, "next" is the
loss on the rest of the text, and "found" the share of right answers.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import lab, masks
from attnjax.experiments.sparse import _needles as shared
from attnjax.lab import Claim, Need, Task, above, of, tasks
from attnjax.ops.sparse_select import delta_attention

PAPERS = (103,)


@dataclass(frozen=True)
class Config(shared.Config):
    depth: int = 4
    length: int = 128
    batch: int = 16
    steps: int = 800
    window: int = 8  # tokens
    sinks: int = 2  # tokens
    gamma: int = 8  # of these rows one is dense
    results: Path = Path("results/delta")

    def __post_init__(self):
        super().__post_init__()
        if 8 * self.needles.needles >= self.length:
            raise lab.UserError(
                f"length: got {self.length}, expected more than 8 times the needles: a quarter "
                "follows the prompt, text and questions"
            )


QUICK = replace(Config(), seeds=1, steps=150, width=32, depth=2, length=64, judged=32)


def scores(c: Config, model: lab.TinyLM, batch: tasks.Batch) -> tasks.Scores:
    """What is minimized, then the three measures."""
    found = tasks.needles(model, batch)
    tokens, plain, _ = map(jnp.asarray, batch)
    logits, seen = model(tokens[:, :-1])
    places = np.arange(c.length)
    generated = places >= 3 * c.length // 4
    losses = lab.cross_entropy(logits, tokens[:, 1:])
    op = model.stack.blocks[0].attention.attend
    each = jax.vmap(cosine, (None, 0, 0, 0))(op, seen["q"], seen["k"], seen["v"])
    corrected = ~generated & (places % c.gamma > 0)
    return found | {
        "next": tasks.share(losses, plain & generated),
        "cosine": each[:, :, corrected].mean(),
    }


def cosine(op: shared.Attend, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Of the outputs of an op and of full attention, (B,T,N)."""
    one, other = op(q, k, v), shared.full(q, k, v)
    norms = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / jnp.maximum(norms, 1e-9)


def studied(c: Config) -> dict[str, Task]:
    near = masks.sinks(c.sinks) | masks.window(c.window - 1)

    def prompt(gamma):
        op = functools.partial(
            delta_attention, sparse=near, gamma=gamma, dense_last=c.length - 3 * c.length // 4
        )
        return shared.instead(shared.model(c, shared.by_place(op)), "full")

    arms = {
        "full": shared.model(c, shared.full),
        "window": prompt(c.length),  # the first row alone is dense, and corrects nothing
        "delta": prompt(c.gamma),
    }
    return {"needles": replace(shared.task(c, arms), score=functools.partial(scores, c))}


def claims(c: Config) -> tuple[Claim, ...]:
    gained = lambda measure: of("delta", measure) - of("window", measure)
    lost = lambda measure: of("full", measure) - of("window", measure)
    return (
        Claim("corrected outputs are nearer to full attention's", "nearer", gained("cosine"),
              above(0.05), (Need("a window's are far from them", lost("cosine"), above(0.05)),)),
        Claim("behind a corrected prompt the loss on what comes next is lower", "nearer",
              of("window", "next") - of("delta", "next"), above(0.02),
              (Need("behind a window's prompt it is higher than behind a full one",
                    of("window", "next") - of("full", "next"), above(0.05)),)),
        Claim("behind a corrected prompt more needles are found", "+36 points", gained("found"),
              above(0.1),
              (Need("behind a window's prompt fewer are found", lost("found"), above(0.2)),)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
