"""Attention to blocks chosen by their mean key has full attention's loss, and can turn into it.

    python -m experiments.sparse.moba

  Lu et al. 2025, "MoBA: Mixture of Block Attention for Long-Context LLMs", arXiv:2502.13189: the
      language-model loss is within 1e-3 of full attention's at up to 81 % sparsity; layers can turn
      into full attention at any time: no jump of the loss, and trained so for the last 10 % of
      tokens, the loss is nearly that of full attention throughout.

Text in which some tokens are needles, which are asked for at the end.  The trained model is judged
with full attention in place of its own, and trained further with it for a tenth of the steps, next
to one that had full attention all along.  What is worse is full attention cut to the own block.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from attnjax import lab
from attnjax.experiments.sparse import _needles as shared
from attnjax.lab import Claim, Task, below, of
from attnjax.ops.sparse_select import moba

PAPERS = (248,)


@dataclass(frozen=True)
class Config(shared.Config):
    results: Path = Path("results/moba")


QUICK = replace(Config(), seeds=1, steps=150, width=32, depth=1, length=64, judged=32)


def studied(c: Config) -> dict[str, Task]:
    full = shared.model(c, shared.full)
    some = shared.by_place(functools.partial(moba, block_size=c.block, top_k=c.top_k))
    arms = {
        "full": full,
        "full, own block": shared.instead(shared.model(c, shared.own_block(c)), "full"),
        "full, longer": shared.instead(full, "full", -(-c.steps // 10)),
        "moba": shared.model(c, some),
        "moba as full": shared.instead(full, "moba"),
        "moba then full": shared.instead(full, "moba", -(-c.steps // 10)),
    }
    return {"needles": shared.task(c, arms)}


def claims(c: Config) -> tuple[Claim, ...]:
    helps = (shared.far_helps(),)
    more = lambda arm, base: of(arm, "text") - of(base, "text")
    return (
        Claim("loss on text as with full attention", "within 1e-3", more("moba", "full"),
              below(0.03), helps),
        Claim("as many needles found", "-", of("full", "found") - of("moba", "found"), below(0.1),
              (shared.far_needed(),)),
        Claim("turned into full attention, the loss does not jump", "no jump",
              more("moba as full", "moba"), below(0.03), helps),
        Claim("trained so for a tenth of the steps, it is as full attention all along",
              "nearly identical", more("moba then full", "full, longer"), below(0.03), helps),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
