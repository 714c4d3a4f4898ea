"""Two heads of softmax attention learn regression in context as a step of gradient descent.

    python -m experiments.theory.regression_heads

  He et al. 2025, "In-Context Linear Regression Demystified: Training Dynamics and Mechanistic
      Interpretability of Multi-Head Softmax Attention", arXiv:2503.12734: trained from random
      numbers, the product of key and query weights becomes diagonal, the same for all
      coordinates, of either sign in different heads; values keep only the label, and their sums
      over heads are zero.  Several heads are better than one, near debiased gradient descent, and
      predict from more examples than they were trained on, where linear attention does not.

A prompt has `length` pairs (x, y), y = beta . x + noise, and the query (x, 0), which sees itself,
too.  One layer of attention is all there is: a head has one matrix for scores and one vector for
values.  "off" is the share of the squares of the x block of score matrices that is not in its mean
diagonal, of all heads together; "sum" is |sum of mu_h| / sum of |mu_h|, mu_h the weight of the
label in the values of head h.  "linear" has q . k in the place of softmax, without any division.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, lab, normalizers
from attnjax.core.normalizers import Normalizer
from attnjax.lab import Arm, Claim, Need, Task, above, below, of, tasks

PAPERS = (19,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    features: int = 4  # coordinates of x
    length: int = 20  # examples in training
    more: int = 4  # times as many, when judged
    noise: float = 0.1
    steps: int = 3000
    batch: int = 256
    learning_rate: float = 1e-2
    judged: int = 2048
    results: Path = Path("results/regression_heads")


QUICK = replace(Config(), seeds=1, steps=200, batch=64, judged=128)


def prompts(count: int, length: int, features: int, noise: float):
    """(seed, step) -> prompts (count, length + 1, features + 1), and labels (count,)."""

    def batch(seed: int, step: int) -> tasks.Batch:
        draw = np.random.default_rng((seed, step, length))
        x = draw.standard_normal((count, length + 1, features))
        beta = draw.standard_normal((count, features, 1)) / np.sqrt(features)
        y = x @ beta + noise * draw.standard_normal((count, length + 1, 1))
        shown = np.concatenate([x, y], axis=-1).astype(np.float32)
        label = shown[:, -1, -1].copy()
        shown[:, -1, -1] = 0
        return shown, label

    return batch


class Heads(nnx.Module):
    """sum_h of attention with scores z_query KQ_h z_l and values z_l . mu_h."""

    def __init__(self, heads: int, width: int, normalizer: Normalizer, *, rngs: nnx.Rngs):
        draw = rngs.params.normal
        self.scores = nnx.Param(0.2 * draw((heads, width, width)))
        self.values = nnx.Param(0.2 * draw((heads, width)))
        self.normalizer = normalizer

    def __call__(self, z: jax.Array) -> jax.Array:
        q = jnp.einsum("BF,HFG->BHG", z[:, -1], self.scores[...])[:, None]
        v = jnp.einsum("BTF,HF->BTH", z, self.values[...])[..., None]
        k = jnp.broadcast_to(z[:, :, None], (*z.shape[:2], v.shape[2], z.shape[2]))
        return attend(q, k, v, normalizer=self.normalizer, scale=1.0).sum((1, 2, 3))


class Descent(nnx.Module):
    """A step of debiased gradient descent from zero: (1 / L) sum_l y_l (x_l - mean x) . x_query."""

    def __init__(self):
        self.rate = nnx.Param(jnp.ones(()))

    def __call__(self, z: jax.Array) -> jax.Array:
        x, y = z[:, :-1, :-1], z[:, :-1, -1]
        centered = x - x.mean(1, keepdims=True)
        return self.rate[...] * jnp.einsum("BTF,BT,BF->B", centered, y, z[:, -1, :-1]) / x.shape[1]


class Ridge(nnx.Module):
    """The best estimate of Gaussian weights from Gaussian noise."""

    def __init__(self, noise: float):
        self.noise = noise

    def __call__(self, z: jax.Array) -> jax.Array:
        x, y = z[:, :-1, :-1], z[:, :-1, -1]
        penalty = x.shape[-1] * self.noise**2 * jnp.eye(x.shape[-1])
        moments = jnp.einsum("BTF,BTG->BFG", x, x) + penalty
        beta = jnp.linalg.solve(moments, jnp.einsum("BTF,BT->BF", x, y)[..., None])[..., 0]
        return (beta * z[:, -1, :-1]).sum(-1)


def look(model: Heads | Descent | Ridge, batch: tasks.Batch) -> tasks.Scores:
    shown, label = batch
    found = {"error": jnp.square(model(jnp.asarray(shown)) - label).mean()}
    if not isinstance(model, Heads):
        return found
    block, mu = model.scores[..., :-1, :-1], model.values[..., -1]
    mean = jnp.trace(block, axis1=1, axis2=2) / block.shape[-1]
    same = mean[:, None, None] * jnp.eye(block.shape[-1])
    off = jnp.square(block - same).sum() / jnp.square(block).sum()
    return found | {"off": off, "sum": jnp.abs(mu.sum()) / jnp.abs(mu).sum()}


def studied(c: Config) -> dict[str, Task]:
    heads = lambda count, normalizer=normalizers.softmax: (
        lambda seed: Heads(count, c.features + 1, normalizer, rngs=nnx.Rngs(seed))
    )
    arms = {
        "one head": heads(1),
        "two heads": heads(2),
        "four heads": heads(4),
        "linear": heads(1, normalizers.identity),
        "descent": lambda seed: Descent(),
        "ridge": Arm(lambda seed: Ridge(c.noise), steps=0),
        "two heads at first": Arm(heads(2), steps=0),
    }
    drawn = lambda count, length: prompts(count, length, c.features, c.noise)
    held = {
        name: drawn(c.judged, n * c.length)(tasks.HELD, 0)
        for name, n in (("", 1), ("more", c.more))
    }
    batch = functools.partial(drawn(c.batch, c.length))
    optimizer = lab.Optimizer(c.steps, c.learning_rate, weight_decay=0.0)
    return {"regression": Task(batch, look, held, c.steps, arms, "squared error", optimizer)}


def claims(c: Config) -> tuple[Claim, ...]:
    error = lambda arm, more="": of(arm, f"error{more}")
    learned = Need("two heads have learned it", error("two heads") / error("two heads at first"),
                   below(0.5))  # fmt: skip
    return (
        Claim("two heads are better than one, by a third of its error at least", "outperforms",
              error("two heads") / error("one head"), below(0.67)),
        Claim("four are not much better than two", "as two", error("two heads")
              - error("four heads"), below(0.05), (learned,)),
        Claim("they come close to a step of debiased gradient descent", "approximates",
              error("two heads") - error("descent"), below(0.03), (learned,)),
        Claim("score matrices become diagonal and the same for all coordinates", "diagonal",
              of("two heads", "off"), below(0.05),
              (learned, Need("they are not at first", of("two heads at first", "off"),
                             above(0.3)))),
        Claim("values of the label cancel over heads", "zero-sum", of("two heads", "sum"),
              below(0.05), (learned,)),
        Claim("from more examples two heads predict better", "generalizes",
              error("two heads", ", more") / error("two heads"), below(0.9), (learned,)),
        Claim("from more examples linear attention predicts worse", "fails to",
              error("linear", ", more") / error("linear"), above(1.5),
              (Need("linear attention has learned it",
                    error("linear") / error("two heads at first"), below(0.5)),)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
