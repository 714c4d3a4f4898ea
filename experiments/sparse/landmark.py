"""A model that retrieves blocks by their landmarks finds needles beyond its training length.

    python -m experiments.sparse.landmark

  Mohtashami and Jaggi 2023, "Landmark Attention: Random-Access Infinite Context Length for
      Transformers", arXiv:2305.16300: with few blocks retrieved, perplexity is comparable to that
      of attention to all; LLaMA 7B, made for 2,048 tokens, finds a passkey among 32,000.

Text in which some tokens are needles, which are asked for at the end; judged also on longer texts
with as many needles.  The model with landmarks is trained on all blocks and judged with retrieval
of a few, at distances that training has shown; full attention is judged as it was trained.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from flax import nnx

from attnjax import lab
from attnjax.experiments.sparse import _needles as shared
from attnjax.lab import Claim, Need, Task, above, below, of
from attnjax.ops.sparse_select import (
    insert_landmarks,
    landmark_attention,
    landmark_retrieval,
    remove_landmarks,
)

PAPERS = (281,)


@dataclass(frozen=True)
class Config(shared.Config):
    longest: int = 8  # times the training length
    steps: int = 1500  # the choice among blocks is learned after all else
    judged: int = 64
    results: Path = Path("results/landmark")

    def __post_init__(self):
        super().__post_init__()
        if self.longest < 2:
            raise lab.UserError(f"longest: got {self.longest}, expected at least 2")


QUICK = replace(Config(), seeds=1, steps=150, width=32, depth=1, length=64, longest=2, judged=16)


class Marked(nnx.Module):
    """A language model that sees a landmark behind each block of tokens."""

    def __init__(self, make: nnx.Module, every: int, landmark: int):
        self.model, self.every, self.landmark = make, every, landmark

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, seen = self.model(insert_landmarks(tokens, self.every, self.landmark))
        return remove_landmarks(logits, self.every), seen


def studied(c: Config) -> dict[str, Task]:
    block = c.block - 1  # with its landmark as long as the others'
    shape = lab.Shape(c.width, c.depth, c.heads, positions="none")
    landmark = c.needles.vocabulary

    def marked(op):
        def make(seed):
            made = lab.TinyLM(shape, op, vocab=landmark + 1, rngs=nnx.Rngs(seed))
            return Marked(made, block, landmark)

        return make

    def retrieving(count):
        op = functools.partial(landmark_retrieval, block=block, top_k=count, base=shared.BASE)
        return shared.instead(marked(op), "landmark, all blocks")

    arms = {
        "full": shared.model(c, shared.full),
        "landmark, all blocks": marked(
            shared.by_place(functools.partial(landmark_attention, block=block))
        ),
        "landmark": retrieving(c.top_k - 1),
        "landmark, own block": retrieving(0),
    }
    return {"needles": shared.task(c, arms, (1, c.longest))}


def claims(c: Config) -> tuple[Claim, ...]:
    far = f"found, {c.longest}x"
    near = "landmark, own block"
    lost = lambda arm: of(arm, "found") - of(arm, far)
    return (
        Claim("with few blocks retrieved, loss on text as with full attention", "comparable",
              of("landmark", "text") - of("full", "text"), below(0.05),
              (shared.far_helps("landmark", near),)),
        Claim(f"at {c.longest} times the training length it finds more than full attention",
              "32,000 of 2,048", of("landmark", far) - of("full", far), above(0.2),
              (shared.far_needed("landmark", near),)),
        Claim(f"at {c.longest} times the training length it still finds the needles", "finds",
              lost("landmark"), below(0.15),
              (Need("full attention loses them there", lost("full"), above(0.3)),
               shared.far_needed("landmark", near))),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
