"""Progress of training runs: bars on a terminal, a line every few seconds elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY = 5.0  # seconds


@runtime_checkable
class Watch(Protocol):
    """What a training loop reports to, each time it has looked at the loss."""

    def __call__(self, step: int, loss: float, rate: float) -> None: ...


def unwatched(step: int, loss: float, rate: float) -> None:
    """Reports nothing."""


class Bars:
    """One bar a variant, all on screen together; use as a context manager."""

    def __init__(self, console: Console | None = None):
        self.console = Console() if console is None else console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def add(self, name: str, steps: int, runs: int = 1) -> Callable[[int], Watch]:
        """One bar for `runs` runs of `steps` each; gives the watch of the run with an index."""
        total = runs * steps
        bar = self._bars.add_task(f"{name:<16}", total=total, note=" " * 30, start=False)
        spoke = 0.0

        def report(done: int, loss: float, rate: float) -> None:
            nonlocal spoke
            note = f"loss {loss:6.3f}  {_thousands(rate):>6} tokens/s"
            if self.console.is_terminal:
                self._bars.start_task(bar)
                self._bars.update(bar, completed=done, note=note)
            elif done == total or time.monotonic() - spoke > _LINE_EVERY:
                spoke = time.monotonic()
                self.console.print(f"{name:<16} {done:>6}/{total}  {note}", highlight=False)

        return lambda run: lambda step, loss, rate: report(run * steps + step, loss, rate)


def _thousands(rate: float) -> str:
    return f"{rate / 1000:.1f}k" if rate >= 1000 else f"{rate:.0f}"
