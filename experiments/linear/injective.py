"""Linear attention that tells queries apart and sees its neighbors matches softmax on images.

    python -m experiments.linear.injective

  Han et al. 2024, "Bridging the Divide: Reconsidering Softmax and Linear Attention",
      arXiv:2412.06590: linear attention that divides by its sum gives collinear queries the same
      weights, which softmax does not; made injective it is better, and with a local residual
      besides it outperforms softmax: 74.5 % on ImageNet where DeiT-T has 72.2 %.

Classifiers of scikit-learn's digits, pixel by pixel: 64 tokens.  All linear attention has relu
features.  The paper's margin over softmax, and that of one refinement over the other, is a few
percent of accuracy; here a claim asks for one.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from flax import nnx

from attnjax import features, lab, linear_attend, normalizers
from attnjax.lab import Claim, Need, Task, above, of, tasks
from attnjax.ops.linear_recurrent import inline_attention, inline_local_attention
from attnjax.ops.softmax_core import multi_head_attention

PAPERS = (383,)

SIDE = 8  # of an image of one-pixel patches


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 32
    depth: int = 2
    heads: int = 2
    steps: int = 600
    batch: int = 32
    results: Path = Path("results/injective")


QUICK = replace(Config(), seeds=1, steps=150)


def divisive(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Linear attention of relu features, divided by its sum, in both directions."""
    return linear_attend(
        features.relu(q), features.relu(k), v, normalize=normalizers.divide, block=None
    )


injective = functools.partial(inline_attention, phi=features.relu)


class Local(nnx.Module):
    """Injective linear attention and 3 x 3 neighbors, weighed by a linear map of the mean value."""

    def __init__(self, heads: int, width: int, *, rngs: nnx.Rngs):
        self.linear = nnx.LinearGeneral((heads, width), (heads, 9), axis=(-2, -1), rngs=rngs)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        weights = self.linear(v.mean(1)).reshape(q.shape[0], q.shape[2], 3, 3)
        return inline_local_attention(q, k, v, weights, shape=(SIDE, SIDE), phi=features.relu)


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, SIDE * SIDE)

    def model(op):
        return lambda seed: lab.TinyViT(shape, op, patch=1, rngs=nnx.Rngs(seed))

    def local(seed):
        rngs = nnx.Rngs(seed)
        # One for all layers would share its weights.
        return model([Local(c.heads, c.width // c.heads, rngs=rngs) for _ in range(c.depth)])(seed)

    arms = {
        "softmax": model(multi_head_attention),
        "divisive": model(divisive),
        "injective": model(injective),
        "injective, local": local,
    }
    batch, held = tasks.handwriting(c.batch)
    return {"digits": Task(batch, tasks.labels, held, c.steps, arms, "nats per image")}


def claims(c: Config) -> tuple[Claim, ...]:
    accuracy = lambda arm: of(arm, "accuracy")
    worse = Need("softmax is better than divisive linear attention",
                 accuracy("softmax") - accuracy("divisive"), above(0.01))  # fmt: skip
    return (
        Claim("injective attention is better than divisive", "better",
              accuracy("injective") - accuracy("divisive"), above(0.01)),
        Claim("a local residual improves injective attention", "better",
              accuracy("injective, local") - accuracy("injective"), above(0.01)),
        Claim("with both, linear attention is as good as softmax", "+2.3 points",
              accuracy("injective, local") - accuracy("softmax"), above(-0.01), (worse,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
