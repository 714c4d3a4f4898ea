"""Checkpoints of any pytree: written by Orbax, sealed, and read back only when the seal holds.

    folder/00000200/{state/..., seal.json}

The state is written into a folder named `*.partial` and renamed last; the seal holds the size and
checksum of every file.  So a kill at any moment, or a disk that lost data, leaves something that
is recognized: it is skipped with a warning, and the checkpoint before it is used.  Keys of random
numbers are leaves as others; an array of no elements is not written, and is that of the new run.

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
    leaves = {_key(i): _saved(leaf) for i, leaf in enumerate(_plain(tree)) if np.size(leaf)}
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
    wanted = {_key(i): x for i, x in enumerate(_plain(like))}
    held = {key: x for key, x in wanted.items() if np.size(x)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        state = (path / "state").absolute()
        there = checkpointer.metadata(state).item_metadata.tree
        shapes = {key: tuple(there[key].shape) for key in there}
        if shapes != {key: np.shape(x) for key, x in held.items()}:
            raise ValueError(
                f"checkpoint: {path} holds other shapes than this run, expected the same"
            )
        how = {key: _how(x) for key, x in held.items()}
        leaves = wanted | checkpointer.restore(state, restore_args=how)
    found = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in leaves.values()]
    pairs = zip(found, jax.tree.leaves(like), strict=True)
    return jax.tree.unflatten(jax.tree.structure(like), [_as(x, old) for x, old in pairs])


def _plain(tree: Any) -> list[Any]:
    """The leaves, keys of random numbers as the integers that they are."""
    return [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]


def _as(x: jax.Array, like: Any) -> jax.Array:
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


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
