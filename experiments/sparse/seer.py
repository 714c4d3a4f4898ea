"""A gate that has learned where attention goes selects better blocks than pooled keys or a window.

    python -m experiments.sparse.seer

  Gao et al. 2024, "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs",
      arXiv:2410.13276: gates that are trained by distillation from a frozen model's attention
      significantly outperform fixed patterns and heuristics, and 90 % sparsity costs minimal
      perplexity.

Text in which some tokens are needles, which are asked for at the end.  "recall" is the share of the
full model's attention that lies in the blocks selected for each query, as many for each selector:
by gates, by mean keys as MoBA does, the first block and the latest ones, or by an oracle.  "text"
and "found" are those of the full model with its attention cut to these blocks.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import Selection, attend, lab, masks, select
from attnjax.experiments.sparse import _needles as shared
from attnjax.lab import Arm, Claim, Need, Task, above, below, of, tasks
from attnjax.nn import SeerGate
from attnjax.ops.sparse_select import moba_blocks
from attnjax.probes import best_selection, selection_recall

PAPERS = (138,)

Rule = Callable[[jax.Array, jax.Array], Selection]  # of q and k with rotary positions


@dataclass(frozen=True)
class Config(shared.Config):
    gate_steps: int = 800
    gate_width: int = 32
    results: Path = Path("results/seer")


QUICK = replace(
    Config(), seeds=1, steps=150, gate_steps=80, width=32, depth=1, length=64, judged=32
)


class Frozen(nnx.Variable):
    """A parameter that is not trained: those of `nnx.Param` are."""


class Chosen(nnx.Module):
    """`attend` of a layer over blocks that a fixed rule selects for each query; as `SeerGate`."""

    def __init__(self, rule: Rule):
        self.rule = rule

    def selection(self, q: jax.Array, k: jax.Array) -> Selection:
        return self.rule(shared.rotated(q), shared.rotated(k))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k = shared.rotated(q), shared.rotated(k)
        return attend(q, k, v, blocks=self.rule(q, k), mask=masks.causal)


class Cut(nnx.Module):
    """A frozen model beside itself with attention cut to blocks; trained are its gates alone."""

    def __init__(self, full: lab.TinyLM, cut: lab.TinyLM):
        self.full, self.cut = frozen(full), frozen(cut)

    def scores(self, batch: tasks.Batch) -> tasks.Scores:
        seen = self.full(jnp.asarray(batch[0][:, :-1]))[1]
        found, losses = [], []
        layers = [block.attention.attend for block in self.cut.stack.blocks]
        for layer, q, k in zip(layers, seen["q"], seen["k"], strict=True):
            if isinstance(layer, SeerGate):
                losses.append(layer.loss(q, k))
            turned = shared.rotated(q), shared.rotated(k)
            chosen = layer.selection(q, k)
            found.append(selection_recall(*turned, chosen, mask=masks.causal).mean())
        trained = {"distillation": jnp.stack(losses).sum()} if losses else {}
        return trained | {"recall": jnp.stack(found).mean()} | tasks.needles(self.cut, batch)


def frozen(model: lab.TinyLM) -> lab.TinyLM:
    """The model, of which all but gates is not trained."""
    for _, node in list(nnx.iter_graph(model)):
        if isinstance(node, nnx.Module) and not isinstance(node, SeerGate):
            for name, value in list(vars(node).items()):
                if isinstance(value, nnx.Param):
                    setattr(node, name, Frozen(value[...]))
    return model


def rules(c: Config) -> dict[str, Rule]:
    """Selectors that nothing is learned for."""
    return {
        "pooled keys": lambda q, k: moba_blocks(q, k, c.block, c.top_k),
        "window": lambda q, k: latest(c, q),
        "oracle": lambda q, k: best_selection(
            q, k, c.top_k, block_q=1, block_k=c.block, mask=masks.causal
        ),
    }


def latest(c: Config, q: jax.Array) -> Selection:
    """The first block, the query's own, and those before it."""
    B, T = q.shape[:2]
    block = np.arange(-(-T // c.block))
    age = (np.arange(T) // c.block)[:, None] - block
    score = np.where(block == 0, np.inf, np.where(age < 0, -np.inf, -age))[:, None]
    scores = jnp.broadcast_to(jnp.asarray(score, jnp.float32), (B, *score.shape))
    return select.top_k(scores, c.top_k, block_k=c.block)


def studied(c: Config) -> dict[str, Task]:
    full = shared.model(c, shared.full)
    choose = functools.partial(select.top_k, k=c.top_k)

    def gate(layer, seed):
        return SeerGate(c.heads, c.width // c.heads, gate_width=c.gate_width, choose=choose,
                        base=shared.BASE, blocks=(1, c.block),
                        rngs=nnx.Rngs(1000 * layer + seed))  # fmt: skip

    def cut(make):
        def made(seed, trained):
            mixers: list[lab.Mixer] = [make(layer, seed) for layer in range(c.depth)]
            pair = full(seed), shared.model(c, mixers)(seed)
            return Cut(*(lab.like(model, trained) for model in pair))

        return made

    needles = shared.task(c, {"full": full})
    fixed = {
        name: Arm(cut(lambda layer, seed, rule=rule: Chosen(rule)), "text: full", steps=0)
        for name, rule in rules(c).items()
    }
    return {
        "text": needles,
        "blocks": replace(needles, score=Cut.scores, steps=c.gate_steps, unit="distillation",
                          arms={"seer": Arm(cut(gate), "text: full"), **fixed}),
    }  # fmt: skip


def claims(c: Config) -> tuple[Claim, ...]:
    recall = lambda arm: of(f"blocks: {arm}", "recall")
    lost = lambda arm: of("text: full", "found") - of(f"blocks: {arm}", "found")
    return (
        Claim("gates recall more attention than pooled keys", "significantly",
              recall("seer") - recall("pooled keys"), above(0.01),
              (Need("there is more to recall", recall("oracle") - recall("pooled keys"),
                    above(0.02)),)),
        Claim("gates recall more attention than a window", "significantly",
              recall("seer") - recall("window"), above(0.03)),
        Claim("cut to the gates' blocks, the full model finds as many needles", "minimal loss",
              lost("seer"), below(0.1),
              (Need("cut to a window it finds fewer", lost("window"), above(0.5)),)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
