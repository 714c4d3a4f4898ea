"""Files of results: proved writable, replaced whole, and never lost to a run of other settings."""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from attnjax.lab.errors import UserError


def results_folder(path: str | Path) -> Path:
    """Makes the folder and proves that it can be written, before hours are spent on its contents.

    Raises UserError when it cannot.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"results: got {path}, expected a writable folder ({reason})") from None
    return folder


def set_aside(folder: Path, settings: Any, console: Console) -> None:
    """Moves a finished report of other settings out of the way, and says so."""
    try:
        old = json.loads((folder / "result.json").read_text())["config"]
    except (OSError, ValueError, KeyError):
        return
    new = plain(dataclasses.asdict(settings))
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if not names:
        return
    aside = folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    aside.mkdir()
    for path in list(folder.iterdir()):
        if path.name != "checkpoints":
            path.rename(aside / path.name)
    told = ", ".join(f"{n} {old.get(n)} (now {new.get(n)})" for n in names)
    said = f"{folder} held a run with {told}; it is now in {aside}"
    console.print(said, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def stopwatch(path: Path) -> Iterator[Callable[[], float]]:
    """The seconds so far, with those of earlier runs that an exception or Ctrl-C ended.

    These are kept in `path`.
    """
    before = float(path.read_text()) if path.exists() else 0.0
    began = time.monotonic()
    spent = lambda: before + time.monotonic() - began
    try:
        yield spent
    except BaseException:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, str(spent()).encode())
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Writes all of `data` or nothing: a temporary file beside it, then a rename."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; results are as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:
    """What JSON can say: tuples become lists, paths text, and nan and infinities text too."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
