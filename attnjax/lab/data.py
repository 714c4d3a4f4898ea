"""Real data that every machine has: Python's own sources as bytes, and scikit-learn's digits.

Batches are functions of (seed, step) alone, so a run that is started again sees the same ones.
"""

import functools
import sysconfig
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnjax.lab.errors import UserError

START = 0  # opens every window; source text has no NUL byte, so nothing else is written so
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_ONE_IN = 10  # files kept for validation


@dataclass(frozen=True, eq=False)
class Text:
    """Bytes to learn from and bytes to be judged by: two uint8 arrays, and where they came from."""

    train: np.ndarray
    validation: np.ndarray
    source: str

    @property
    def digest(self) -> int:
        """A checksum of both parts, to tell one text from another."""
        return zlib.crc32(self.validation.tobytes(), zlib.crc32(self.train.tobytes()))


def read_text(path: str | Path | None = None) -> Text:
    """Python's standard library sources, or the file or folder at `path`, as bytes.

    Folders are split by file: the name, relative to the folder, decides, so that no file is in
    both parts.  A single file keeps its last tenth for validation.  Hidden files and files with a
    NUL byte (binaries) are left out.

    Raises UserError when the text cannot be read or is empty.
    """
    return _library() if path is None else _text(Path(path), str(path), "*")


@functools.cache
def _library() -> Text:
    return _text(Path(sysconfig.get_path("stdlib")), "Python's standard library", "*.py")


def _text(root: Path, name: str, pattern: str) -> Text:
    library = pattern == "*.py"
    if not root.exists():
        raise UserError(f"text: got {name}, which does not exist, expected a file or a folder")
    if root.is_file():
        files = {root.name: _read(root)}
    else:
        found = sorted(root.rglob(pattern))
        parts = {p.relative_to(root).as_posix(): p for p in found if p.is_file()}
        files = {key: _read(p) for key, p in parts.items() if not _skip(key, library)}
    files = {key: data for key, data in files.items() if data and START not in data}
    if not files:
        raise UserError(f"text: got {name}, which holds no text, expected at least one text file")
    held = {key for key in files if zlib.crc32(key.encode()) % _ONE_IN == 0}
    if 0 < len(held) < len(files):
        return Text(_join(files, files.keys() - held), _join(files, held), name)
    whole = _join(files, files.keys())
    cut = len(whole) - len(whole) // _ONE_IN
    return Text(whole[:cut], whole[cut:], name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"text: got {path}, expected a readable file ({reason})") from None


def _skip(key: str, library: bool) -> bool:
    parts = key.split("/")
    return any(p.startswith(".") or (library and p in _SKIPPED) for p in parts)


def _join(files: dict[str, bytes], keys: Iterable[str]) -> np.ndarray:
    return np.frombuffer(b"".join(files[key] for key in sorted(keys)), np.uint8)


def windows(part: np.ndarray, length: int, count: int, *, seed: int, step: int) -> np.ndarray:
    """`count` random windows for one step: (count, length + 1) int32, each opened by START.

    Inputs are `[:, :-1]`, and the bytes to predict `[:, 1:]`.
    """
    last = _last_window(part, length)
    begin = np.random.default_rng((seed, step)).integers(0, last + 1, count)
    return _cut(part, begin, length)


def evenly(part: np.ndarray, length: int, count: int) -> np.ndarray:
    """`count` windows at even distances, the same every time, in the form of `windows`."""
    begin = np.linspace(0, _last_window(part, length), count).astype(np.int64)
    return _cut(part, begin, length)


def _last_window(part: np.ndarray, length: int) -> int:
    if len(part) < length:
        raise UserError(f"text: got {len(part)} bytes in one part, expected at least {length}")
    return len(part) - length


def _cut(part: np.ndarray, begin: np.ndarray, length: int) -> np.ndarray:
    cut = part[begin[:, None] + np.arange(length)[None, :]].astype(np.int32)
    return np.pad(cut, ((0, 0), (1, 0)), constant_values=START)


@dataclass(frozen=True, eq=False)
class Images:
    """Images (count, height, width) float32 in [0, 1] and their labels (count,) int32."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def digits() -> Images:
    """scikit-learn's 1797 handwritten digits, 8 x 8, ten classes; every fifth for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    labels = labels.astype(np.int32)
    tests = np.arange(len(labels)) % 5 == 0
    return Images(images[~tests], labels[~tests], images[tests], labels[tests])
