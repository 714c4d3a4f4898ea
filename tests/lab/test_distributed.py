"""Parts of one run in several processes: split checkpoints, watching, joining."""

import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from attnjax import lab
from attnjax.lab import checkpoint, distributed
from tests.helpers import by_slurm, wait_for

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")


# ------------------------------------------------------------------------- split checkpoints


def line(count):
    return Mesh(np.array(jax.devices()[:count]), ("sp",))


def tree():
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 16), "b": (8,), "odd": (3, 5), "n": ()}
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def put(host, mesh):
    sharding = distributed.split_over(mesh)
    return jax.tree.map(lambda x: jax.device_put(x, sharding(x)), host)


def test_leaves_are_split_along_the_first_dimension_that_is_even():
    split = put(tree(), line(8))
    specs = {name: leaf.sharding.spec for name, leaf in split.items()}
    assert specs["w"] == PartitionSpec(None, ("sp",)) and specs["b"] == PartitionSpec(("sp",))
    assert specs["odd"] == specs["n"] == PartitionSpec()
    assert {shard.data.shape for shard in split["w"].addressable_shards} == {(3, 2)}


def test_a_split_checkpoint_is_read_over_fewer_devices_with_the_same_bits(tmp_path):
    checkpoint.save(tmp_path, 3, put(tree(), line(8)))
    for step, count in [(3, 4), (4, 1), (5, 2)]:
        like = put(jax.tree.map(np.zeros_like, tree()), line(count))
        found, read = checkpoint.latest(tmp_path, like)
        assert found == step
        for name, leaf in read.items():
            assert leaf.sharding == like[name].sharding and len(leaf.devices()) == count
            np.testing.assert_array_equal(leaf, tree()[name])
        checkpoint.save(tmp_path, step + 1, read)
    _, plain = checkpoint.latest(tmp_path, jax.tree.map(jnp.zeros_like, tree()))
    jax.tree.map(np.testing.assert_array_equal, plain, tree())
    assert {type(leaf.sharding).__name__ for leaf in plain.values()} == {"SingleDeviceSharding"}
    with pytest.raises(ValueError, match="00000006 holds other shapes"):
        checkpoint.latest(tmp_path, put(tree() | {"w": np.zeros((3, 24), np.float32)}, line(8)))


def test_a_damaged_split_checkpoint_is_skipped(tmp_path):
    host = tree()
    for step in (1, 2):
        checkpoint.save(tmp_path, step, put(jax.tree.map(lambda x, s=step: x + s, host), line(8)))
    files = [p for p in (tmp_path / "00000002" / "state").rglob("*") if p.stat().st_size > 100]
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    files[0].write_bytes(data)
    with pytest.warns(UserWarning, match="00000002 is damaged: skipped"):
        step, read = checkpoint.latest(tmp_path, put(host, line(4)))
    assert step == 1
    np.testing.assert_array_equal(read["w"], host["w"] + np.float32(1))


# ------------------------------------------------------------------------- watching processes

SLEEPER = "import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


def by_index(*codes):
    """A command whose first worker runs the first code, the second the second."""
    pick = "import json, os; i = json.loads(os.environ['ATTNJAX_WORKER'])['index']"
    return [sys.executable, "-c", f"{pick}\nexec({codes!r}[i])"]


def test_all_that_end_well_are_waited_for(tmp_path):
    codes = [f"open({str(tmp_path / str(i))!r}, 'w')" for i in range(2)]
    slow = "import time; time.sleep(0.5); "
    distributed.launch(2, by_index(slow + codes[0], slow + codes[1]), devices_each=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


def test_who_fails_is_named_and_the_others_are_ended(capfd):
    began = time.monotonic()
    failing = "import time; time.sleep(0.5); raise SystemExit('no disk')"
    with pytest.raises(distributed.WorkerDied) as caught:
        distributed.launch(
            2, by_index(STUBBORN, failing), devices_each=1, advice=lambda: "Again.", grace=1.0
        )
    assert str(caught.value) == "worker 1 of 2 ended with status 1; the run is over. Again."
    assert "worker 1 said last:\nno disk" in capfd.readouterr().err
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("missed", "died", "expected"),
    [
        ("sys.exit(1)", "signal.raise_signal(9)", r"was killed by signal 9 \(SIGKILL\);"),
        ("os.abort()", "sys.exit(3)", "ended with status 3;"),
        (
            "time.sleep(60)",
            "os.abort()",
            "aborted, as JAX does when another hangs;",
        ),
    ],
)
def test_who_died_is_blamed_and_not_who_missed_it(missed, died, expected, tmp_path):
    pid = str(tmp_path / "pid")
    first = f"""
import os, sys, time
while not os.path.exists({pid!r}) or not (pid := open({pid!r}).read()):
    time.sleep(0.01)
while os.path.exists(f"/proc/{{pid}}") and " Z " not in open(f"/proc/{{pid}}/stat").read():
    time.sleep(0.01)
{missed}
"""
    second = f"import os, signal, sys; open({pid!r}, 'w').write(str(os.getpid())); {died}"
    with pytest.raises(distributed.WorkerDied, match=f"worker 1 of 2 {expected}"):
        distributed.launch(2, by_index(first, second), devices_each=1)


def test_workers_do_not_outlive_the_process_that_started_them(tmp_path):
    worker = f"""
import os, pathlib, threading
from attnjax.lab import distributed
pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()
distributed._end_with_parent()
"""
    parent = f"""
import sys
from attnjax.lab import distributed
distributed.launch(1, [sys.executable, "-c", {worker!r}], devices_each=1)
"""
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT)
    wait_for(lambda: list(tmp_path.iterdir()), process)
    process.kill()
    process.wait()
    (worker,) = (int(p.name) for p in tmp_path.iterdir())
    wait_for(lambda: not Path(f"/proc/{worker}/cmdline").exists(), None, 10)


# ------------------------------------------------------------------------- one or several


def test_devices_are_those_that_there_are():
    assert len(distributed.devices(None)) == 8 and len(distributed.devices(2)) == 2
    with pytest.raises(lab.UserError, match=r"got 9, but JAX has 8 \(cpu\).*NUM_CPU_DEVICES=9"):
        distributed.devices(9)
    with pytest.raises(lab.UserError, match="devices: got 4, but JAX has 8"):
        distributed.devices(4, "cluster")


def test_a_run_is_started_here_or_elsewhere(monkeypatch):
    ran, launched = [], []
    distributed.across(1, 8, lambda: ran.append(distributed.is_first()))
    assert ran == [True]
    monkeypatch.setattr(distributed, "launch", lambda n, command, **more: launched.append(more))
    distributed.across(2, 8, ran.clear, lambda: "Again.")
    assert ran == [True] and launched[0]["devices_each"] == 4
    assert launched[0]["advice"]() == "Again."


def test_advice_names_the_run_and_its_step(tmp_path):
    assert distributed.advice(tmp_path / "none").startswith("No checkpoint was written yet")
    for step in (2, 4):
        checkpoint.save(tmp_path / "full-split-0", step, {"x": jnp.zeros(3)})
    assert "go on from step 4 of 'full-split-0'" in distributed.advice(tmp_path)


def test_a_cluster_starts_the_processes_itself():
    member = """
import jax
from attnjax.lab import distributed
with distributed.member(True):
    distributed.agree("nothing", 7)
    print(jax.process_index(), jax.process_count(), jax.device_count())
"""
    said = by_slurm([sys.executable, "-c", member])
    assert "0 2 4" in said[0].splitlines() and "1 2 4" in said[1].splitlines()
