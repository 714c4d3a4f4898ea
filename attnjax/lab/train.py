"""The training loop: AdamW with a warm-up and a cosine, one compilation, checkpoints.

A run is a function of its arguments: the batch of a step depends on the step alone, and everything
else that changes (parameters, optimizer state, step, losses) is in the checkpoint.  So a run that
is killed and started again ends with the same bits, on one machine and the same versions.  Runs of
one loss and one optimizer, such as those of several seeds, share one compiled step.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attnjax.lab import checkpoint
from attnjax.lab.errors import UserError
from attnjax.lab.progress import Watch, unwatched

LOOKS = 20  # at the validation loss during a run
_LOOK_EVERY = 0.5  # seconds between looks at the loss; each one waits for the device


@dataclass(frozen=True)
class Optimizer:
    """AdamW; the rate rises over the first tenth of the steps and falls by a cosine to a tenth.

    Weight decay acts on matrices, not on vectors.  Gradients are clipped to norm `clip`.
    """

    steps: int = 400
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"steps: got {self.steps}, expected at least 1")

    def transformation(self) -> optax.GradientTransformation:
        top = self.learning_rate
        warm = max(1, self.steps // 10)
        rate = optax.warmup_cosine_decay_schedule(
            0.0, top, warm, max(self.steps, warm + 1), top / 10
        )
        matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        adam = optax.adamw(rate, weight_decay=self.weight_decay, mask=matrices)
        return optax.chain(optax.clip_by_global_norm(self.clip), adam)


@runtime_checkable
class Minimizer(Protocol):
    """What minimizes: `Optimizer`, or anything hashable with these two."""

    @property
    def steps(self) -> int: ...

    def transformation(self) -> optax.GradientTransformation: ...


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: parameters, the loss of every step (steps,), and its speed.

    `validation` is the validation loss at even distances, the last one at the end; empty where
    none was asked for.
    """

    params: Any
    losses: np.ndarray
    validation: np.ndarray
    tokens_per_second: float


def train(
    params: Any,
    loss: Callable[[Any, Any], jax.Array],
    batches: Callable[[int], Any],
    optimizer: Minimizer,
    *,
    validate: Callable[[Any], jax.Array] | None = None,
    folder: Path | None = None,
    every: int = 100,
    watch: Watch = unwatched,
    sharding: Callable[[Any], jax.sharding.Sharding] | None = None,
) -> Run:
    """Minimizes `loss(params, batch)` for `optimizer.steps` steps over `batches(step)`.

    `validate(params)` is asked for up to 20 times on the way.  Where `folder` is given, a
    checkpoint is written every `every` steps and at the end, and a run starts from the newest sound
    one; a finished run is only read.  Tokens are counted as the entries of the first array of a
    batch.

    `sharding(leaf)` says how each parameter, and so its moments, is split over devices between
    steps, of one process or several; `params` are then arrays on the host or of those devices.

    Raises UserError when a checkpoint cannot be written; the one before it stays.
    """
    steps = optimizer.steps
    stride = -(-steps // LOOKS)
    start = (params, jnp.zeros(steps), jnp.zeros(steps // stride))
    if sharding is None:
        begin, update = _compiled(loss, optimizer)
    else:
        *learned, losses, _ = jax.eval_shape(functools.partial(_begin, optimizer), *start)
        # A number cannot be split, so its sharding is that of what every device has in full.
        whole = sharding(losses.update(shape=()))
        leaves, tree = jax.tree.flatten((*jax.tree.map(sharding, learned), whole, whole))
        begin, update = _compiled(loss, optimizer, (tuple(leaves), tree))
    state = begin(*start)
    found = None if folder is None else checkpoint.latest(folder, state)
    first, state = (0, state) if found is None else found
    if first:
        watch(first, float(np.asarray(state[2])[first - 1]), 0.0)
    counted, looked, rate = None, 0.0, 0.0
    for step in range(first, steps):
        batch = batches(step)
        state = update(state, np.int32(step), batch)
        done = step + 1
        if validate is not None and done % stride == 0:
            told = state[3].at[done // stride - 1].set(validate(state[0]))
            state = (*state[:3], told)
        due = done % every == 0 or done == steps
        if counted is None or due or time.monotonic() - looked > _LOOK_EVERY:
            value = float(np.asarray(state[2])[step])  # waits for the device
            looked = time.monotonic()
            # Speed is counted from the end of the first step, which compiles.
            counted = counted or (done, looked)
            tokens = (done - counted[0]) * jax.tree.leaves(batch)[0].size
            rate = tokens / max(looked - counted[1], 1e-9)
            watch(done, value, rate)
        if due and folder is not None:
            _save(folder, done, state)
    seen = np.asarray(state[3]) if validate is not None else np.zeros(0, np.float32)
    return Run(state[0], np.asarray(state[2]), seen, rate)


def _begin(optimizer: Minimizer, params: Any, losses: jax.Array, seen: jax.Array) -> tuple:
    return params, optimizer.transformation().init(params), losses, seen


# One entry: seeds follow each other, and a program of an arm that is done is only memory.
@functools.lru_cache(maxsize=1)
def _compiled(
    loss: Callable, optimizer: Minimizer, split: tuple[tuple, Any] | None = None
) -> tuple[Callable, Callable]:
    """(begin, update): programs that make the first state, and the next from a batch.

    `split` is (leaves, tree) of the state's shardings.
    """
    placed = {} if split is None else {"out_shardings": split[1].unflatten(split[0])}
    transformation = optimizer.transformation()

    def update(state: Any, step: jax.Array, batch: Any) -> Any:
        params, moments, losses, seen = state
        value, gradient = jax.value_and_grad(loss)(params, batch)
        change, moments = transformation.update(gradient, moments, params)
        return optax.apply_updates(params, change), moments, losses.at[step].set(value), seen

    return jax.jit(functools.partial(_begin, optimizer), **placed), jax.jit(update, **placed)


def _save(folder: Path, step: int, state: Any) -> None:
    try:
        checkpoint.save(folder, step, state)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        before = checkpoint.newest(folder)
        stays = "nothing was kept yet" if before is None else f"step {before} is kept"
        raise UserError(
            f"results: checkpoint of step {step} cannot be written to {folder} ({reason}); {stays}"
        ) from None
