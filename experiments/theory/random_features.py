"""Attention of random features needs fewer samples than an MLP of them, and a mean helps it.

    python -m experiments.theory.random_features

  Fu, Guo, Bai and Mei 2023, "What can a Single Attention Layer Learn? A Study Through the Random
      Features Lens", arXiv:2307.11353: with frozen random queries and keys and learned values, an
      attention layer learns targets that do not depend on the order of keys from far fewer samples
      than random features of all tokens at once; where a target depends on products of query and
      key, weights whose mean is the identity need fewer than those around zero.

f(x_0; x_1 .. x_N) = sum_m mean_i relu(xt_0 W_m xt_i) (v_m . xt_i), xt = [x; 1], for random W_m and
values v_m by ridge regression, on points of the unit sphere times sqrt(d).  "attention" has W_m
around zero, "biased" around the identity on x, both with variance 1/4 over d; "mlp" has as many
parameters, in relu features of all tokens.  Targets are "mean", of (beta . x_i)^2, and "match", of
(x_0 . x_i / sqrt(d))^3 (beta . x_i).  "error" is over the variance of the target.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import attend, lab, normalizers
from attnjax.lab import Arm, Claim, Need, Task, below, of, tasks

PAPERS = (31,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    dimension: int = 8
    tokens: int = 8
    random: int = 256  # heads, M
    samples: tuple[int, ...] = (128, 512, 1024)
    judged: int = 2048
    results: Path = Path("results/random_features")


QUICK = replace(Config(), seeds=1, random=16, samples=(32, 64, 128), judged=128)


def with_one(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def heads(weights: jax.Array, x: jax.Array) -> jax.Array:
    """What M heads with scores xt_0 W_m xt_i read, (B, M (d + 1)): relu weights over N."""
    xt = with_one(x)
    q = jnp.einsum("Bd,Mde->BMe", xt[:, 0], weights)[:, None]
    k = jnp.broadcast_to(xt[:, 1:, None], (*x.shape[:1], x.shape[1] - 1, 1, xt.shape[-1]))
    read = attend(q, k, k, normalizer=normalizers.relu(), scale=1.0) / k.shape[1]
    return read.reshape(len(x), weights.shape[0] * xt.shape[-1])


def units(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Relu of random products with all tokens together, (B, M (d + 1))."""
    flat = with_one(x.reshape(len(x), x.shape[1] * x.shape[2]))
    return jax.nn.relu(flat @ weights)


TARGETS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mean": lambda x, beta: jnp.square(x[:, 1:] @ beta).mean(1),
    "match": lambda x, beta: (
        (jnp.einsum("Bd,BNd->BN", x[:, 0], x[:, 1:]) / np.sqrt(x.shape[-1])) ** 3
        * (x[:, 1:] @ beta)
    ).mean(1),
}


class Features(nnx.Module):
    """Random features of a seed, which also draws the samples."""

    def __init__(self, seed: int, kind: str):
        self.kind = kind
        self.seed = nnx.Variable(jnp.asarray(seed, jnp.int32))

    def draw(self, c: Config) -> Callable[[jax.Array], jax.Array]:
        d, key = c.dimension, jax.random.fold_in(jax.random.key(self.seed[...]), 1)
        if self.kind == "mlp":
            inputs = (c.tokens + 1) * d + 1
            weights = jax.random.normal(key, (inputs, c.random * (d + 1)))
            return functools.partial(units, weights / jnp.sqrt(inputs))
        weights = jax.random.normal(key, (c.random, d + 1, d + 1)) / 2
        mean = jnp.diag(jnp.ones(d + 1).at[-1].set(0.0)) if self.kind == "biased" else 0.0
        return functools.partial(heads, (weights + mean) / d)

    def error(self, c: Config, target: str, samples: int) -> jax.Array:
        """Of ridge regression on so many samples, the better of some penalties."""
        keys = jax.random.split(jax.random.key(self.seed[...]), 3)
        size = (samples + c.judged, c.tokens + 1, c.dimension)
        x = jax.random.normal(keys[0], size)
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True) * np.sqrt(c.dimension)
        beta = jax.random.normal(keys[1], (c.dimension,))
        y = TARGETS[target](x, beta / jnp.linalg.norm(beta))
        seen, wanted = y[:samples] - y[:samples].mean(), y[samples:] - y[:samples].mean()
        features = self.draw(c)(x)
        features = features - features[:samples].mean(0)
        size = jnp.square(features[:samples]).sum(1).mean()
        gram = features[:samples] @ features[:samples].T
        others = features[samples:] @ features[:samples].T

        def left(penalty: float) -> jax.Array:
            guess = others @ jnp.linalg.solve(gram + penalty * size * jnp.eye(samples), seen)
            return jnp.square(guess - wanted).mean() / jnp.var(wanted)

        return jnp.stack([left(penalty) for penalty in (1e-4, 1e-2, 1.0)]).min()


def look(c: Config, target: str, model: Features, batch: tasks.Batch) -> tasks.Scores:
    return {f"error, {n}": model.error(c, target, n) for n in c.samples}


def studied(c: Config) -> dict[str, Task]:
    arms = {
        kind: Arm(lambda seed, kind=kind: Features(seed, kind), steps=0)
        for kind in ("attention", "biased", "mlp")
    }
    nothing = (np.zeros(1, np.float32),)
    return {
        target: Task(lambda seed, step: nothing, functools.partial(look, c, target), nothing, 1,
                     arms)
        for target in TARGETS
    }  # fmt: skip


def claims(c: Config) -> tuple[Claim, ...]:
    less, more = c.samples[-2:]
    error = lambda target, arm, n: of(f"{target}: {arm}", f"error, {n}")
    learns = lambda target, arm: Need(f"{arm} learns from {more} samples",
                                      error(target, arm, more), below(0.5))  # fmt: skip
    return (
        *(Claim(f"{target}: from {more} samples, {arm} has half of an MLP's error at most",
                "fewer samples", error(target, arm, more) / error(target, "mlp", more), below(0.5))
          for target, arm in (("mean", "attention"), ("match", "biased"))),
        Claim(f"mean: attention needs half of an MLP's samples, {less} for {more}",
              "fewer samples", error("mean", "attention", less) / error("mean", "mlp", more),
              below(0.8), (learns("mean", "attention"),)),
        Claim(f"match: with a mean, weights have less error from {less} samples",
              "needs fewer", error("match", "biased", less) / error("match", "attention", less),
              below(0.8)),
        Claim(f"match: with a mean, {less} samples are enough for what {more} give without",
              "needs fewer", error("match", "biased", less) / error("match", "attention", more),
              below(0.9), (learns("match", "biased"),)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
