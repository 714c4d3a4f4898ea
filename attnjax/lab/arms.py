"""Tasks, arms and seeds: what an experiment that trains models is made of.

    Task   what is learned, how it is judged, and by which arms
    Arm    one model of a task; of a plain function `make(seed)` one is made

Every arm of a task sees the same batches, those of (seed, step), so that arms with one seed are
paired.  Runs are kept under `checkpoints` until all is done, and go on where they were interrupted.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from attnjax.lab import checkpoint
from attnjax.lab.claims import Metrics, Names
from attnjax.lab.errors import UserError
from attnjax.lab.progress import Bars, Watch
from attnjax.lab.train import Minimizer, Optimizer, train

Scores = Mapping[str, jax.Array]
Log = Callable[[str, int, Mapping[str, float]], None]  # run, step, numbers


@dataclass(frozen=True)
class Arm:
    """A model of a task.

    make     (seed) -> the model; with a `source`, (seed, its trained model) -> the model
    source   the row of an arm before this one, with the same seed
    steps    of training, those of the task if None; 0 judges the model as it is made
    """

    make: Callable[..., nnx.Module]
    source: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Task:
    """What is learned, how it is judged, and by whom.

    batch    (seed, step) -> arrays; the first array counts the tokens
    score    (model, batch) -> measures; the first is minimized, arrays are kept for figures
    held     a batch to judge with, or several by name: `found` of the one named "2x" is the measure
             "found, 2x", and the one named "" gives its measures their own names
    unit     of the first measure
    """

    batch: Callable[[int, int], Any]
    score: Callable[[Any, Any], Scores]
    held: Any
    steps: int
    arms: Mapping[str, Arm | Callable[[int], nnx.Module]]
    unit: str = "nats"
    optimizer: Minimizer | None = None

    def judged(self) -> dict[str, Any]:
        return dict(self.held) if isinstance(self.held, dict) else {"": self.held}


@dataclass(eq=False)
class Result:
    """What a run found.

    seeds        the metrics of each seed (or round): row -> measure -> value
    losses       task -> arm -> the training loss of every step, an array a seed
    validation   task -> arm -> the validation loss on the way, an array a seed
    arrays       row -> name -> what the score gave besides numbers, of the first seed
    parameters   row -> how many are trained
    seconds      row -> length -> the time of each round
    """

    seeds: list[Metrics]
    losses: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    validation: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, dict[int, list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a run keeps its files, how large it is, and who hears of its numbers."""

    folder: Path
    effort: str = "full"
    log: Log | None = None

    def runs(self, key: str) -> Path:
        return self.folder / "checkpoints" / key


@dataclass(frozen=True)
class Training:
    """Trains every arm of `tasks(config)` with every seed, and judges it."""

    tasks: Callable[[Any], Mapping[str, Task]]

    def __call__(self, config: Any, key: str, place: Place) -> Result:
        result = Result([{} for _ in range(config.seeds)])
        todo = list(self._rows(config, place.effort))
        models: dict[tuple[str, int], nnx.Module] = {}
        with Bars() as bars:
            watches = {
                one.row: bars.add(one.row, one.optimizer.steps, config.seeds)
                for one in todo
                if one.optimizer.steps
            }
            for one in todo:
                trainer = _Trainer(one, place, place.runs(key))
                for seed in range(config.seeds):
                    source = models.get((one.arm.source or "", seed))
                    watch = watches[one.row](seed) if one.row in watches else None
                    model = trainer.run(seed, source, watch, result)
                    if any(later.arm.source == one.row for later in todo):
                        models[one.row, seed] = model
                    if config.keep and one.optimizer.steps:
                        params = nnx.split(model, nnx.Param, ...)[1]
                        checkpoint.save(_weights(place.folder, one.row, seed), 0, params)
        return result

    def names(self, config: Any) -> Names:
        """Row -> its measures, without training: shapes alone are calculated."""
        rows = {one.row: one for one in self._rows(config, "smoke")}

        def made(row: str) -> nnx.Module:
            arm = rows[row].arm
            return arm.make(0) if arm.source is None else arm.make(0, made(arm.source))

        def measures(one: "_Row") -> list[str]:
            found: list[str] = []
            for name, batch in one.task.judged().items():
                order: list[str] = []  # a dict comes back sorted

                def score(batch: Any, order: list[str] = order) -> Scores:
                    scores = one.task.score(made(one.row), batch)
                    order += scores
                    return dict(scores)

                shapes = jax.eval_shape(score, batch)
                found += [_named(m, name) for m in order if shapes[m].ndim == 0]
            return found

        return {row: measures(one) for row, one in rows.items()}

    def load(self, config: Any, folder: Path, row: str, seed: int = 0) -> Any:
        """The trained model of a row, kept by a run of `config` with `keep` in `folder`."""
        rows = {one.row: one.arm for one in self._rows(config, "full")}
        if row not in rows:
            raise UserError(f"row: got {row!r}, expected one of {', '.join(rows)}")
        arm = rows[row]
        more = () if arm.source is None else (self.load(config, folder, arm.source, seed),)
        graph, params, rest = nnx.split(arm.make(seed, *more), nnx.Param, ...)
        if arm.steps != 0:
            where = _weights(folder, row, seed)
            found = checkpoint.latest(where, params)
            if found is None:
                raise UserError(f"weights: got {where}, expected those of a run with --keep")
            params = found[1]
        return nnx.merge(graph, params, rest)

    def _rows(self, config: Any, effort: str) -> Iterator["_Row"]:
        tasks = self.tasks(config)
        seen: set[str] = set()
        for title, task in tasks.items():
            rate = getattr(config, "learning_rate", Optimizer.learning_rate)
            usual = Optimizer(max(1, task.steps), rate, weight_decay=0.1)
            for name, made in task.arms.items():
                arm = made if isinstance(made, Arm) else Arm(made)
                row = f"{title}: {name}" if len(tasks) > 1 else name
                if arm.source is not None and arm.source not in seen:
                    raise UserError(
                        f"arm {row}: source: got {arm.source!r}, expected an arm before it"
                    )
                seen.add(row)
                steps = task.steps if arm.steps is None else arm.steps
                steps = min(steps, _SMOKE) if effort == "smoke" else steps
                one = task.optimizer or usual
                yield _Row(row, title, name, task, arm, _resized(one, steps))


_SMOKE = 2  # steps of a smoke run


@dataclass(frozen=True)
class _Row:
    row: str
    title: str
    name: str
    task: Task
    arm: Arm
    optimizer: Any


@dataclass(frozen=True)
class _Untrained:
    steps: int = 0


def _resized(optimizer: Any, steps: int) -> Any:
    if steps == 0:
        return _Untrained()
    return optimizer if optimizer.steps == steps else dataclasses.replace(optimizer, steps=steps)


class _Trainer:
    """The programs of one arm, which its seeds share."""

    def __init__(self, one: _Row, place: Place, runs: Path):
        self.one, self.place, self.runs = one, place, runs
        self.graph: Any = None
        self.measures: tuple[str, ...] = ()
        self.program = jax.jit(self.values)

    def scores(self, params: Any, rest: Any, batch: Any) -> Scores:
        return self.one.task.score(nnx.merge(self.graph, params, rest), batch)

    def values(self, params: Any, rest: Any, batch: Any) -> tuple[jax.Array, ...]:
        """Those of the scores, whose names are noted: a dict would leave jit in another order."""
        found = self.scores(params, rest, batch)
        self.measures = tuple(found)
        return tuple(found.values())

    def judge(self, params: Any, rest: Any, batch: Any) -> dict[str, jax.Array]:
        values = self.program(params, rest, batch)
        return dict(zip(self.measures, values, strict=True))

    def loss(self, params: Any, batch: Any) -> jax.Array:
        *batch, rest = batch
        return next(iter(self.scores(params, rest, tuple(batch)).values()))

    def run(self, seed: int, source: Any, watch: Watch | None, result: Result) -> nnx.Module:
        """Trains and judges one seed; puts everything into `result`."""
        one, task = self.one, self.one.task
        made = one.arm.make(seed) if source is None else one.arm.make(seed, source)
        self.graph, params, rest = nnx.split(made, nnx.Param, ...)
        result.parameters[one.row] = sum(x.size for x in jax.tree.leaves(params))
        batches = task.judged()
        if one.optimizer.steps:
            first = next(iter(batches.values()))
            trained = train(
                params, self.loss, lambda step: (*task.batch(seed, step), rest), one.optimizer,
                validate=lambda params: next(iter(self.judge(params, rest, first).values())),
                folder=self.runs / f"{slug(one.row)}-{seed}", watch=self.heard(seed, watch),
            )  # fmt: skip
            params = trained.params
            for kept, curve in zip(
                (result.losses, result.validation), (trained.losses, trained.validation),
                strict=True,
            ):  # fmt: skip
                kept.setdefault(one.title, {}).setdefault(one.name, []).append(curve)
            result.units[one.title] = task.unit
        found: dict[str, float] = {}
        for name, batch in batches.items():
            for measure, x in self.judge(params, rest, batch).items():
                x = np.asarray(x)
                if x.ndim == 0:
                    found[_named(measure, name)] = float(x)
                elif seed == 0:
                    result.arrays.setdefault(one.row, {})[_named(measure, name)] = x
        result.seeds[seed][one.row] = found
        if self.place.log is not None:
            self.place.log(f"{one.row}, seed {seed}", one.optimizer.steps, found)
        return nnx.merge(self.graph, params, rest)

    def heard(self, seed: int, watch: Watch | None) -> Watch:
        """The watch, which tells the log as well."""

        def report(step: int, loss: float, rate: float) -> None:
            if watch is not None:
                watch(step, loss, rate)
            if self.place.log is not None:
                self.place.log(f"{self.one.row}, seed {seed}", step, {"loss": loss})

        return report


def like(made: Any, trained: Any) -> Any:
    """The model `made` with the parameters of `trained`: another execution of the same weights."""
    nnx.update(made, nnx.state(trained, nnx.Param))
    return made


def slug(name: str) -> str:
    """A name as a part of a file's."""
    return "".join(c if c.isalnum() else "-" for c in name)


def _named(measure: str, batch: str) -> str:
    return f"{measure}, {batch}" if batch else measure


def _weights(folder: Path, row: str, seed: int) -> Path:
    return folder / "weights" / f"{slug(row)}-{seed}"
