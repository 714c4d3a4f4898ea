"""What the experiments on needles in text share: sizes, rotary attention, and the task."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import lab, masks
from attnjax.core.positions import rotary
from attnjax.lab import Arm, Need, Task, above, of, tasks
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import moba

BASE = 10000.0  # of rotary positions

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Config(lab.TextConfig):
    """Sizes of the models, the task and the blocks."""

    depth: int = 2
    length: int = 64  # of training sequences
    steps: int = 1000
    batch: int = 32
    block: int = 4  # keys of a block
    top_k: int = 4  # blocks, of length / block
    needles: tasks.Needles = field(default_factory=tasks.Needles)

    def __post_init__(self):
        super().__post_init__()
        if self.length % self.block or not 3 <= self.top_k <= self.length // self.block:
            raise lab.UserError(
                f"block, top_k: got {self.block}, {self.top_k}, expected a divisor of length "
                f"{self.length}, and from 3 blocks to all"
            )
        if 4 * self.needles.needles > self.length:
            raise lab.UserError(f"length: got {self.length}, expected 4 times the needles at least")
        if self.needles.needles > self.needles.keys:
            raise lab.UserError(
                f"needles: got {self.needles.needles}, expected at most keys {self.needles.keys}"
            )


def rotated(x: jax.Array, places: jax.Array | np.ndarray | None = None) -> jax.Array:
    """x (B,T,N,H) with rotary positions 0, 1, 2, ... or those given."""
    places = np.arange(x.shape[1]) if places is None else places
    return rotary(x, jnp.asarray(places), BASE).astype(x.dtype)


def by_place(op: Attend) -> Attend:
    """op over q and k with rotary positions."""
    return lambda q, k, v: op(rotated(q), rotated(k), v)


full = by_place(functools.partial(multi_head_attention, mask=masks.causal))


def own_block(c: Config) -> Attend:
    """Causal attention inside of blocks: what finds no needle."""
    return by_place(functools.partial(moba, block_size=c.block, top_k=1))


def model(c: Config, mixer: lab.Mixer | Sequence[lab.Mixer]) -> Callable[[int], lab.TinyLM]:
    """(seed) -> a language model around the mixer, or the mixers of its blocks."""
    shape = lab.Shape(c.width, c.depth, c.heads, positions="none")
    vocabulary = c.needles.vocabulary
    return lambda seed: lab.TinyLM(shape, mixer, vocab=vocabulary, rngs=nnx.Rngs(seed))


def instead(make: Callable[[int], nnx.Module], source: str, steps: int = 0) -> Arm:
    """The model of `make` with the trained parameters of `source`, trained for `steps` more."""
    return Arm(lambda seed, trained: lab.like(make(seed), trained), source, steps)


def task(c: Config, arms: Mapping[str, Any], times: Sequence[int] = (1,)) -> Task:
    """Needles in text, judged also on sequences several times as long."""
    text = tasks.Bytes.of(c)
    held = {f"{n}x" if n > 1 else "": c.needles.held(text, n) for n in times}
    unit = "nats per byte + per answer"
    return Task(c.needles.batch(text), tasks.needles, held, c.steps, arms, unit)


def far_helps(full: str = "full", near: str = "full, own block") -> Need:
    """What makes a loss as low as full attention's worth something."""
    return Need("what is beyond a token's own block helps", of(near, "text") - of(full, "text"),
                above(0.1))  # fmt: skip


def far_needed(full: str = "full", near: str = "full, own block") -> Need:
    """What makes as many found as by full attention worth something."""
    return Need("full attention finds what is beyond a token's own block",
                of(full, "found") - of(near, "found"), above(0.5))  # fmt: skip
