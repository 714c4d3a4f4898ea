"""Checkpoints of any pytree: written by Orbax, sealed, and read back only when the seal holds.

    folder/00000200/{state/..., seal.json}

The state is written into a folder named `*.partial` and renamed last; the seal holds the size and
checksum of every file.  So a kill at any moment, or a disk that lost data, leaves something that
is recognized: it is skipped with a warning, and the checkpoint before it is used.
"""

import json
import os
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_KEPT = 2


def save(folder: Path, step: int, tree: Any) -> Path:
    """Writes the tree as the checkpoint of `step`, and removes all but the newest two."""
    final = folder / f"{step:08d}"
    partial = final.with_suffix(".partial")
    for stale in (partial, final):
        shutil.rmtree(stale, ignore_errors=True)
    leaves = {f"{i:06d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((partial / "state").absolute(), leaves)
    (partial / "seal.json").write_text(json.dumps(_checksums(partial)))
    os.replace(partial, final)
    for old in _finished(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return final


def latest(folder: Path, like: Any) -> tuple[int, Any] | None:
    """The newest sound checkpoint as (step, tree of the structure of `like`), or None.

    Every unsound one is named in a warning, and removed.
    """
    if not folder.is_dir():
        return None
    for partial in sorted(folder.glob("*.partial")):
        _drop(partial, "is half written")
    for path in reversed(_finished(folder)):
        if _sound(path):
            return int(path.name), _read(path, like)
        _drop(path, "is damaged")
    return None


def _read(path: Path, like: Any) -> Any:
    with ocp.PyTreeCheckpointer() as checkpointer:
        leaves = checkpointer.restore((path / "state").absolute())
    wanted, structure = jax.tree.flatten(like)
    found = [leaves[key] for key in sorted(leaves)]
    if [np.shape(x) for x in found] != [np.shape(x) for x in wanted]:
        raise ValueError(f"checkpoint: {path} holds other shapes than this run, expected the same")
    return jax.tree.unflatten(structure, [jnp.asarray(x) for x in found])


def _finished(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit())


def _checksums(folder: Path) -> dict[str, list[int]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "seal.json")
    data = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
    return {name: [len(x), zlib.crc32(x)] for name, x in data.items()}


def _sound(path: Path) -> bool:
    try:
        return json.loads((path / "seal.json").read_text()) == _checksums(path)
    except (OSError, ValueError):
        return False


def _drop(path: Path, why: str) -> None:
    warnings.warn(f"checkpoint {path} {why}: skipped", stacklevel=3)
    shutil.rmtree(path)
