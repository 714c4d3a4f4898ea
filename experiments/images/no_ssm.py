"""A state space model adds nothing to a gated convolution on images, and does where texts are long.

    python -m experiments.images.no_ssm

  Yu and Wang 2024, "MambaOut: Do We Really Need Mamba for Vision?", arXiv:2405.07992: gated CNN
      blocks, which are Mamba's without its state space model, are better than visual Mambas at
      classifying images, a task with neither long sequences nor causality; where sequences are
      long and causal, the model is worth having.

Blocks x + (gelu(g) * [i; c]) W, with c a depthwise convolution of some channels, and in "ssm" a
selective state space model behind it.  "digits" are scikit-learn's, pixel by pixel, convolved 7 x 7
around each; "memory" are random letters, one of which, in the first half, is marked, and asked for
at the end, with causal convolutions of 7 letters: what a gated convolution cannot see.  "text" is
Python's library, byte by byte.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import lab
from attnjax.core.scan.convolution import causal_conv, depthwise
from attnjax.lab import Claim, Need, Task, above, below, of, tasks
from attnjax.ops.linear_recurrent import selective_ssm

PAPERS = (356,)

SIDE, TAPS = 8, 7


@dataclass(frozen=True)
class Config(lab.TextConfig):
    width: int = 32
    depth: int = 2
    states: int = 8  # of each channel of the state space model
    length: int = 64  # letters
    letters: int = 16
    steps: int = 300
    remembering: int = 700  # steps of "memory"
    batch: int = 32
    results: Path = Path("results/no_ssm")


QUICK = replace(Config(), seeds=1, depth=1, steps=100, remembering=100, width=16, length=32,
                judged=32)  # fmt: skip


def slow(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Mamba's first biases of rates: softplus gives 0.001 to 0.1, evenly in the logarithm."""
    rates = jnp.exp(jax.random.uniform(key, shape, dtype, np.log(1e-3), np.log(1e-1)))
    return rates + jnp.log(-jnp.expm1(-rates))


class SSM(nnx.Module):
    """A selective state space model of W channels, with the input added, one rate a channel."""

    def __init__(self, width: int, states: int, *, rngs: nnx.Rngs):
        self.dt = nnx.Linear(width, width, rngs=rngs, bias_init=slow)
        self.steering = nnx.Linear(width, 2 * states, use_bias=False, rngs=rngs)
        self.log_a = nnx.Param(jnp.tile(jnp.log(jnp.arange(1.0, states + 1)), (width, 1)))
        self.skip = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        b, c = jnp.split(self.steering(x), 2, axis=-1)
        dt = jax.nn.softplus(self.dt(x))
        return selective_ssm(x, dt, -jnp.exp(self.log_a[...]), b, c) + self.skip[...] * x


class Block(nnx.Module):
    """The gated CNN block of 8/3 W channels, W of them convolved, on a map or on a causal text."""

    def __init__(self, c: Config, image: bool, ssm: bool, *, rngs: nnx.Rngs):
        W, inside = c.width, 8 * c.width // 3
        self.norm = nnx.LayerNorm(W, rngs=rngs)
        self.gate, self.value = (nnx.Linear(W, inside, rngs=rngs) for _ in range(2))
        self.out = nnx.Linear(inside, W, rngs=rngs)
        taps = (TAPS, TAPS, W) if image else (TAPS, W)
        self.kernel = nnx.Param(rngs.params.normal(taps) / np.sqrt(np.prod(taps[:-1])))
        self.ssm = SSM(W, c.states, rngs=rngs) if ssm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        normed, W = self.norm(x), x.shape[-1]
        value = self.value(normed)
        through, turned = value[..., :-W], value[..., -W:]
        if self.kernel.ndim == 3:
            turned = depthwise(turned.reshape(len(x), SIDE, SIDE, W), self.kernel[...])
            turned = turned.reshape(x.shape)
        else:
            turned = causal_conv(turned, self.kernel[...])[0]
        if self.ssm is not None:
            turned = self.ssm(jax.nn.silu(turned))
        mixed = jax.nn.gelu(self.gate(normed)) * jnp.concatenate([through, turned], axis=-1)
        return x + self.out(mixed)


class Model(nnx.Module):
    """Of images of floats (B,8,8), or of tokens (B,T), for which a letter each is predicted."""

    def __init__(self, c: Config, vocab: int | None, ssm: bool, *, rngs: nnx.Rngs):
        image = vocab is None
        W = c.width
        self.embed = nnx.Linear(1, W, rngs=rngs) if image else nnx.Embed(vocab, W, rngs=rngs)
        self.image, size = image, SIDE * SIDE if image else c.length
        self.places = nnx.Param(0.1 * rngs.params.normal((1, size, W)))
        self.blocks = nnx.List([Block(c, image, ssm, rngs=rngs) for _ in range(c.depth)])
        self.norm = nnx.LayerNorm(W, rngs=rngs)
        self.head = nnx.Linear(W, 10 if image else vocab, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict]:
        x = x.reshape(len(x), SIDE * SIDE, 1) if self.image else x
        x = self.embed(x)
        x = x + self.places[...][:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.image else x), {}


def marked(count: int, length: int, letters: int):
    """(seed, step) -> letters, of which one is marked (+ letters) and asked for at the end."""

    def batch(seed: int, step: int) -> tasks.Batch:
        draw = np.random.default_rng((seed, step))
        tokens = draw.integers(0, letters, (count, length)).astype(np.int32)
        place = draw.integers(0, length // 2, count)
        wanted = np.zeros_like(tokens)
        wanted[:, -1] = tokens[np.arange(count), place]
        tokens[np.arange(count), place] += letters
        tokens[:, -1] = 2 * letters
        return tokens, wanted, np.broadcast_to(np.arange(length) == length - 1, tokens.shape)

    return batch


def studied(c: Config) -> dict[str, Task]:
    arms = lambda vocab: {
        name: lambda seed, ssm=ssm: Model(c, vocab, ssm, rngs=nnx.Rngs(seed))
        for name, ssm in (("convolution", False), ("ssm", True))
    }
    images, held = tasks.handwriting(c.batch)
    memory = marked(c.batch, c.length, c.letters)
    asked = marked(c.judged, c.length, c.letters)(tasks.HELD, 0)
    text = tasks.Bytes.of(c)
    return {
        "digits": Task(images, tasks.labels, held, c.steps, arms(None), "nats per image"),
        "memory": Task(memory, tasks.answers, asked, c.remembering, arms(2 * c.letters + 1),
                       "nats per answer"),
        "text": Task(text.batch, tasks.next_byte, text.held, c.steps, arms(256), "nats per byte"),
    }  # fmt: skip


def claims(c: Config) -> tuple[Claim, ...]:
    more = lambda task: of(f"{task}: ssm", "accuracy") - of(f"{task}: convolution", "accuracy")
    remembers = Need("it remembers what convolutions do not see", more("memory"), above(0.3))
    return (
        Claim("digits: a state space model adds less than a point", "nothing", more("digits"),
              below(0.01), (remembers,)),
        Claim("memory: it answers what a convolution does not", "long and causal", more("memory"),
              above(0.3)),
        Claim("text: it predicts better", "long and causal",
              of("text: convolution", "nats") - of("text: ssm", "nats"), above(0.02)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
