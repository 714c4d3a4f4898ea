"""An experiment as a record: its settings, what it runs, its claims; and the command that runs it.

    STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(tasks), claims)

    if __name__ == "__main__":
        STUDY.main()

`python -m experiments.X` is the full run, on whose verdicts one may rely; `--quick` is a minute, in
the settings of QUICK; `--smoke` only shows that everything runs: QUICK with two training steps, or
one round of a timing.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
from matplotlib.figure import Figure
from rich.console import Console

from attnjax.lab.arms import Log, Place, Result, Training
from attnjax.lab.claims import Claim, Names, Verdict, check_names
from attnjax.lab.cli import effort_of, one_line_errors, positive, read_config, run_key
from attnjax.lab.data import read_text
from attnjax.lab.distributed import is_first
from attnjax.lab.files import results_folder, set_aside, stopwatch
from attnjax.lab.report import report


@dataclass(frozen=True)
class Config:
    """What every experiment lets one set; a subclass adds its own and changes defaults."""

    results: Path = Path("results/experiment")

    def __post_init__(self):
        """Refuses numbers that are not above zero."""
        whole = [f.name for f in dataclasses.fields(self)]
        positive(self, " ".join(n for n in whole if type(getattr(self, n)) is int))


@dataclass(frozen=True)
class ModelConfig(Config):
    """Sizes of small models and of their training."""

    seeds: int = 3
    keep: bool = False  # the trained weights, for `STUDY.load`
    width: int = 64
    depth: int = 3
    heads: int = 4
    learning_rate: float = 3e-3
    judged: int = 128  # validation sequences


@dataclass(frozen=True)
class TextConfig(ModelConfig):
    """Besides, the text that is read."""

    text: Path | None = None  # a file or a folder; default: Python's standard library


@dataclass(frozen=True)
class TimingConfig(Config):
    """How often each time is taken."""

    rounds: int = 5


C = TypeVar("C", bound=Config)


@runtime_checkable
class Runner(Protocol):
    """What a study runs: `Training`, `Timing`, or one's own."""

    def __call__(self, config: Any, key: str, place: Place, /) -> Result: ...

    def names(self, config: Any, /) -> Names:
        """Row -> its measures, known before anything runs."""
        ...


Figures = Callable[[Any, Result], Mapping[str, Figure]]


def at_once(config: Any, run: Callable[[], object]) -> None:
    """Runs in this process."""
    run()


def no_figures(config: Any, result: Result) -> Mapping[str, Figure]:
    """None but those of every study."""
    return {}


@dataclass(frozen=True)
class Study(Generic[C]):
    """An experiment.

    doc      the module's docstring: one line, then the papers with their claims, and the method
    config   the settings of the full run;  quick: of one of a minute
    run      what gives the metrics
    claims   config -> the claims on those metrics
    figures  (config, result) -> figures besides those that every study has
    start    (config, run) -> None: calls run() in every process of the run, after starting others
             or asking for virtual devices; `main` alone does, before JAX makes its devices
    """

    doc: str | None
    config: C
    quick: C
    run: Runner
    claims: Callable[[C], Sequence[Claim]]
    figures: Figures = no_figures
    start: Callable[[C, Callable[[], object]], None] = at_once

    @property
    def title(self) -> str:
        return (self.doc or "").strip().partition("\n")[0].rstrip(".")

    def sized(self, effort: str) -> C:
        """The default settings of an effort, with a results folder of its own."""
        if effort == "full":
            return self.config
        config = self.quick
        if effort == "smoke":  # two layers, since a hybrid has two kinds
            depth = min(2, getattr(config, "depth", 2))
            config = _replaced(config, seeds=1, rounds=1, depth=depth)
        folder = config.results
        return dataclasses.replace(config, results=folder.with_name(f"{folder.name}-{effort}"))

    def execute(
        self, config: C, effort: str = "full", *, log: Log | None = None,
        console: Console | None = None,
    ) -> tuple[Verdict, ...]:  # fmt: skip
        """Runs, judges, draws, and writes everything; goes on where it was interrupted.

        Of several processes the first alone writes, and the others return no verdicts.
        `log(run, step, numbers)` hears of every loss looked at and of the measures at the end.
        Raises UserError for claims on what is not there, before anything runs, and for a results
        folder that cannot be written.
        """
        claims = tuple(self.claims(config))
        check_names(claims, self.run.names(config))
        console = Console() if console is None else console
        folder = results_folder(config.results)
        settings = _replaced(config, results=Path(), keep=False)
        if is_first():
            set_aside(folder, settings, console)
        text = getattr(config, "text", None)
        digest = 0 if text is None else read_text(text).digest
        key = run_key(_replaced(settings, seeds=1), effort, digest)
        with stopwatch(folder / "checkpoints" / f"{key}.seconds") as spent:
            result = self.run(config, key, Place(folder, effort, log))
        if not is_first():
            return ()
        verdicts = report(
            self.doc or folder.name, claims, result, effort=effort, config=settings, folder=folder,
            seconds=spent(), figures=self.figures(config, result), console=console,
        )  # fmt: skip
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return verdicts

    def load(self, row: str, seed: int = 0, *, config: C | None = None) -> Any:
        """The trained model of a row, as a run with `--keep` left it in `config.results`."""
        assert isinstance(self.run, Training), "only a study that trains has weights"
        config = self.config if config is None else config
        return self.run.load(config, config.results, row, seed)

    def main(self, *, log: Log | None = None, arguments: Sequence[str] | None = None) -> None:
        """The command line: settings as options, `--quick` or `--smoke` for smaller defaults."""
        effort, rest = effort_of(arguments)
        if effort == "smoke":  # seconds go into compiling, and programs run twice
            os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_HASTY])
        with one_line_errors():
            config = read_config(self.doc, self.sized(effort), rest)
            self.start(config, lambda: self.execute(config, effort, log=log))


def _replaced(config: C, **values: Any) -> C:
    """The settings with those of the values that they have."""
    there = {f.name for f in dataclasses.fields(config)}
    return dataclasses.replace(config, **{n: x for n, x in values.items() if n in there})


_HASTY = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # XLA ends a process that names a flag it does not know, as later ones do not know this.
    *(("--xla_cpu_use_fusion_emitters=false",) if jax.__version_info__ < (0, 11) else ()),
)
