"""Checkpoints of any pytree: written by Orbax, sealed, and read back only when the seal holds.

    folder/00000200/{state/..., seal.json}

The state is written into a folder named `*.partial` and renamed last; the seal holds the size and
checksum of every file.  So a kill at any moment, or a disk that lost data, leaves something that
is recognized: it is skipped with a warning, and the checkpoint before it is used.

Leaves that are split over devices are written by whoever has them, and read back as the leaves of
the new run are split: over more devices, fewer, or one.  Of several processes each writes and reads
its own parts, in a folder that all of them see; all call `save` and `latest` at the same steps.
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
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

_KEPT = 2


def save(folder: Path, step: int, tree: Any) -> Path:
    """Writes the tree as the checkpoint of `step`, and removes all but the newest two."""
    final = folder / f"{step:08d}"
    partial = final.with_suffix(".partial")
    first = jax.process_index() == 0
    if first:
        for stale in (partial, final):
            shutil.rmtree(stale, ignore_errors=True)
    _meet("nobody writes before stale files are gone")
    leaves = {_key(i): _saved(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((partial / "state").absolute(), leaves)
    _meet("nothing is sealed before all have written")
    if first:
        (partial / "seal.json").write_text(json.dumps(_checksums(partial)))
        os.replace(partial, final)
        for old in _finished(folder)[:-_KEPT]:
            shutil.rmtree(old)
    _meet("nobody goes on before the checkpoint is there")
    return final


def latest(folder: Path, like: Any) -> tuple[int, Any] | None:
    """The newest sound checkpoint as (step, tree of the structure of `like`), or None.

    Leaves are split over devices as those of `like` are.  Every unsound checkpoint is named in a
    warning, and removed.
    """
    step = _newest_sound(folder) if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        told = np.int32(-1 if step is None else step)
        step = int(multihost_utils.broadcast_one_to_all(told))
        step = None if step < 0 else step
    return None if step is None else (step, _read(folder / f"{step:08d}", like))


def newest(folder: Path) -> int | None:
    """The step of the newest checkpoint, whether it is sound or not, or None."""
    found = _finished(folder) if folder.is_dir() else []
    return int(found[-1].name) if found else None


def _newest_sound(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    for partial in sorted(folder.glob("*.partial")):
        _drop(partial, "is half written")
    for path in reversed(_finished(folder)):
        if _sound(path):
            return int(path.name)
        _drop(path, "is damaged")
    return None


def _read(path: Path, like: Any) -> Any:
    wanted, structure = jax.tree.flatten(like)
    keys = [_key(i) for i in range(len(wanted))]
    with ocp.PyTreeCheckpointer() as checkpointer:
        state = (path / "state").absolute()
        there = checkpointer.metadata(state).item_metadata.tree
        shapes = [tuple(there[key].shape) for key in sorted(there)]
        if shapes != [np.shape(x) for x in wanted]:
            raise ValueError(
                f"checkpoint: {path} holds other shapes than this run, expected the same"
            )
        how = {key: _how(x) for key, x in zip(keys, wanted, strict=True)}
        leaves = checkpointer.restore(state, restore_args=how)
    found = (leaves[key] for key in keys)
    return jax.tree.unflatten(
        structure, [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in found]
    )


def _key(index: int) -> str:
    return f"{index:06d}"


def _is_split(leaf: Any) -> bool:
    """Whether a leaf is an array of a mesh of devices, and not simply at hand."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf.sharding, SingleDeviceSharding)


def _saved(leaf: Any) -> Any:
    return leaf if _is_split(leaf) else np.asarray(leaf)


def _how(leaf: Any) -> ocp.RestoreArgs:
    if _is_split(leaf):
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _meet(why: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(why)


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
    warnings.warn(f"checkpoint {path} {why}: skipped", stacklevel=4)
    shutil.rmtree(path)
