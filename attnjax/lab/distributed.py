"""One run over several JAX processes: started here over loopback, or by a cluster.

    across(2, 8, run)                    this command once more in each of two, which call run()
    launch(2, command, devices_each=4)   starts a command twice, and watches both
    with member(cluster=False): ...      in each of them: makes it a process of the run

Under SLURM, Open MPI or Kubernetes the cluster starts the processes, and `member(cluster=True)`
finds the others by itself (`jax.distributed.initialize`).

A process that dies takes the run with it in a bounded time.  `launch` ends the others and says who
died of what; on a cluster those left stop when the heartbeats of one have been missing.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from attnjax.lab import checkpoint
from attnjax.lab.errors import UserError
from attnjax.lab.progress import Watch

_WORKER = "ATTNJAX_WORKER"  # how a process that `launch` started knows what it is
_HEARTBEAT = 30  # seconds without a sign of life until the others stop
_TAIL = 2000  # characters of a dead worker's output that are shown


class WorkerDied(UserError):
    """A process of the run ended before its time; the message says which, how and what to do."""


# ------------------------------------------------------------------------ starting and watching


def launch(
    count: int,
    command: Sequence[str],
    *,
    devices_each: int,
    advice: Callable[[], str] = lambda: "",
    grace: float = 3.0,
) -> None:
    """Runs `count` processes of one command, with virtual CPU devices, and waits for them.

    The first writes where this process does; what the others write is shown when they fail.  When
    one dies, the others get `grace` seconds to end before they are killed.

    Raises WorkerDied, which ends with `advice()`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, workers = Path(name), []
        address = f"127.0.0.1:{_free_port()}"
        try:
            for index in range(count):
                told = {"index": index, "count": count, "address": address, "folder": name}
                workers.append(_start(command, told, devices_each))
            while any(worker.poll() is None for worker in workers) and not _failed(workers):
                time.sleep(0.1)
            if _failed(workers):
                raise WorkerDied(" ".join([_obituary(workers, folder), advice()]).strip())
        finally:
            _end(workers, grace)


def _start(command: Sequence[str], told: dict[str, Any], devices: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        _WORKER: json.dumps(told),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    with contextlib.ExitStack() as stack:
        log = None
        if told["index"]:
            log = stack.enter_context(open(_log(Path(told["folder"]), told["index"]), "wb"))
        # A session of its own: a Ctrl-C reaches this process alone, which then ends the workers.
        # The pipe closes with this process, however it ends, and its workers with the pipe.
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def _log(folder: Path, index: int) -> Path:
    return folder / f"{index}.log"


def _note(folder: Path, index: int) -> Path:
    return folder / f"{index}.note"


def _failed(workers: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(worker.poll() for worker in workers)


def _obituary(workers: Sequence[subprocess.Popen[bytes]], folder: Path) -> str:
    """Who died first, of what and where; shows what it said last."""
    codes = [worker.poll() or 0 for worker in workers]
    # A signal comes from outside; who ends with a status may only have missed the one killed, and
    # so may who aborts: JAX does that when another gives no sign of life.
    guilt = lambda i: (codes[i] == 0, codes[i] == -signal.SIGABRT, codes[i] > 0)
    index = min(range(len(codes)), key=guilt)
    code = codes[index]
    if code == -signal.SIGABRT:
        how = "aborted, as JAX does when another hangs,"
    else:
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with status {code}"
    with contextlib.suppress(OSError):
        how += f" {_note(folder, index).read_text()}"
    with contextlib.suppress(OSError):
        said = _log(folder, index).read_text(errors="replace").strip()
        if code > 0 and said:
            print(f"worker {index} said last:\n{said[-_TAIL:]}", file=sys.stderr)
    return f"worker {index} of {len(workers)} {how.rstrip(',')}; the run is over."


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _end(workers: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Ends those that still run: at once by their own will, or after `grace` seconds by force."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    until = time.monotonic() + grace
    for worker in workers:
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdin is not None:
            worker.stdin.close()


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


# ------------------------------------------------------------------------- being one of several


def is_worker() -> bool:
    """Whether `launch` started this process."""
    return _WORKER in os.environ


def is_first() -> bool:
    """Whether this process writes what all found; asks for no devices where it is alone."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def across(
    processes: int | Literal["cluster"],
    devices: int,
    run: Callable[[], object],
    advice: Callable[[], str] = lambda: "",
) -> None:
    """Calls `run()` in this process, in `processes` that it starts, or as one of a cluster's.

    CPU devices are virtual ones, `devices` of all processes together; a cluster has its own.
    """
    if processes not in (1, "cluster") and not is_worker():
        command = [sys.executable, *sys.orig_argv[1:]]
        launch(processes, command, devices_each=devices // processes, advice=advice)
        return
    if processes == 1:
        virtual_devices(devices)
    with member(processes == "cluster"):
        run()


@contextlib.contextmanager
def member(cluster: bool) -> Iterator[None]:
    """Makes this process one of those of the run; nothing happens where it is the only one.

    Call it before anything asks JAX for devices.  When the body fails, the process ends at once,
    after saying why: an orderly end would wait for the others, who wait for this one.
    """
    if not (cluster or is_worker()):
        yield
        return
    try:
        _join_cluster() if cluster else _join_launched()
        yield
    except BaseException as error:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def _join_launched() -> None:
    told = json.loads(os.environ[_WORKER])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        told["address"], told["count"], told["index"], initialization_timeout=60,
        heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=60,
    )  # fmt: skip


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the other end is closed
    os._exit(1)


def _join_cluster() -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
    except ValueError as error:
        raise UserError(
            "processes: got cluster, expected to be started by one that JAX knows (SLURM, Open MPI,"
            f" Kubernetes): {error}"
        ) from None


def note(text: str) -> None:
    """Remembers what this process is doing, for the message that `launch` gives if it dies."""
    if is_worker():
        told = json.loads(os.environ[_WORKER])
        _note(Path(told["folder"]), told["index"]).write_text(text)


def noted(run: str, watch: Watch) -> Watch:
    """The watch of a run, which also leaves word of where it is."""

    def report(step: int, loss: float, rate: float) -> None:
        note(f"after step {step} of '{run}'")
        watch(step, loss, rate)

    return report


def advice(folder: Path) -> str:
    """What to do when a process died, and from where the runs in `folder` will go on."""
    runs = sorted(folder.glob("*"), key=lambda run: run.stat().st_mtime)
    begun = [(step, run.name) for run in runs if (step := checkpoint.newest(run)) is not None]
    if not begun:
        return "No checkpoint was written yet: the same command starts again."
    step, name = begun[-1]
    return f"Start the same command again to go on from step {step} of '{name}'."


def agree(name: str, value: int) -> None:
    """Raises UserError unless all processes have the same value, 0 .. 2**32 - 1."""
    every = np.asarray(multihost_utils.process_allgather(np.uint32(value))).reshape(-1)
    if (every != every[0]).any():
        raise UserError(f"{name}: differs between processes, expected the same in each")


# ------------------------------------------------------------------------------ devices, arrays


def virtual_devices(count: int) -> None:
    """Asks for so many CPU devices, if JAX has not made its devices already."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def devices(count: int | None, processes: int | Literal["cluster"] = 1) -> list[Any]:
    """So many devices; by default 8 of CPUs, and all of accelerators or of a cluster.

    Raises UserError where there are fewer, and for less than all of a cluster's.
    """
    there = jax.devices()
    cluster = processes == "cluster"
    usual = 8 if there[0].platform == "cpu" and not cluster else len(there)
    wanted = usual if count is None else count
    if wanted > len(there) or (cluster and wanted != len(there)):
        raise UserError(
            f"devices: got {wanted}, but JAX has {len(there)} ({there[0].platform}); expected as "
            "many at most, and all of a cluster's (virtual ones: JAX_PLATFORMS=cpu "
            f"JAX_NUM_CPU_DEVICES={wanted})"
        )
    return there[:wanted]


def everywhere(mesh: Mesh) -> Callable[[Any], NamedSharding]:
    """A sharding for any leaf: each device has all of it."""
    return lambda leaf: NamedSharding(mesh, PartitionSpec())


def split_over(mesh: Mesh) -> Callable[[Any], NamedSharding]:
    """A sharding for any leaf: its first dimension that all devices can share evenly is split.

    A leaf without such a dimension is everywhere.
    """

    def sharding(leaf: Any) -> NamedSharding:
        even = (i for i, size in enumerate(np.shape(leaf)) if size and size % mesh.size == 0)
        axis = next(even, None)
        spec = () if axis is None else (*[None] * axis, mesh.axis_names)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return sharding


def spread(array: Any, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """An array that every process has, as one of all devices, of which each has its part."""
    array = np.asarray(array)
    where = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, where, lambda part: array[part])
