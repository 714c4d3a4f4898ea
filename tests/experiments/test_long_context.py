"""Long context: many devices and processes, one loss; what is killed goes on where it was."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from attnjax import lab
from attnjax.lab import checkpoint, distributed
from experiments import long_context
from experiments.long_context import ALONE, SPLIT, STACKS, title
from tests.helpers import sample

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of three small sources of the standard library."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("bisect.py", "heapq.py", "keyword.py"):
        (folder / name).write_bytes((Path(os.__file__).parent / name).read_bytes())
    return folder


def micro(text, **changes):
    return replace(
        long_context.QUICK, steps=10, every=4, batch=2, width=16, depth=2, heads=2, length=32,
        window=9, learning_rate=1e-2, text=text, **changes,
    )  # fmt: skip


def options(config):
    """The command line of a config."""
    given = []
    for name, value in vars(config).items():
        if value is not None:
            given += [f"--{name.replace('_', '-')}"]
            given += map(str, value if isinstance(value, tuple) else (value,))
    return given


def command(config):
    return [sys.executable, "-m", "experiments.long_context", *options(config)]


def record(config):
    return json.loads((config.results / "result.json").read_text())


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The result of an uninterrupted run over 8 devices, in this process."""
    return long_context.run(micro(text, results=tmp_path_factory.mktemp("whole")))


# ------------------------------------------------------------------------- positions


def test_positions_travel_with_tokens():
    full = lambda q, k, v: jax.nn.dot_product_attention(q, k, v)  # knows nothing of the order
    shape = lab.Shape(width=8, depth=2, heads=2, length=12)
    model = lab.TinyLM(shape, full, rngs=nnx.Rngs(0))
    tokens = jnp.arange(9)[None] * 3
    order = np.random.default_rng(0).permutation(9).astype(np.int32)
    want, _ = model(tokens)
    got, _ = model(tokens[:, order], positions=jnp.asarray(order))
    np.testing.assert_allclose(got, want[:, order], atol=1e-5)
    assert abs(model(tokens[:, order])[0] - want[:, order]).max() > 1e-2
    run = lambda *at: model(tokens[:, :2], positions=jnp.array(at))[0]
    assert np.isfinite(run(10, 11)).all() and np.isnan(run(10, 12)).any()  # none is made up


# ------------------------------------------------------------------------- one process


@pytest.mark.parametrize("stack", sample(["hybrid"], STACKS, pytest.mark.slow))
def test_split_over_devices_the_gradient_is_that_of_the_definition(stack, text):
    config = micro(text)
    drawn = lab.windows(lab.read_text(text).train, config.length, config.batch, seed=0, step=3)
    mesh = Mesh(np.array(jax.devices()), ("sp",))
    graph, params = long_context.model(
        config, stack, long_context.Ring("sp", "zigzag"), long_context.LASP2("sp", "zigzag")
    )
    laid = long_context.layout((drawn[:, :-1], drawn[:, 1:]), 8, "zigzag")
    loss = long_context.split_loss(graph, drawn[:, 1:].size, mesh)
    got = jax.jit(jax.value_and_grad(loss))(params, (*laid.values, laid.positions))
    plain = long_context.model(config, stack, "dense", "recurrent")[0]

    def definition(params):
        logits, _ = nnx.merge(plain, params)(jnp.asarray(drawn[:, :-1]))
        return lab.cross_entropy(logits, jnp.asarray(drawn[:, 1:])).mean()

    want = jax.jit(jax.value_and_grad(definition))(params)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert abs(w).max() > 0
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-6)


def test_a_run_in_one_process_says_the_same_in_every_file(text, tmp_path, whole, monkeypatch):
    config = micro(text, results=tmp_path)
    monkeypatch.setattr(long_context, "run", lambda given: {config: whole}[given])
    long_context.main(config)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["differences.png", "loss.png", "report.md", "result.json"]
    assert record(config)["metrics"] == [whole.metrics]
    for stack in STACKS:
        alone, split = (whole.losses[title(stack, where)] for where in (ALONE, SPLIT))
        found = whole.metrics[title(stack, SPLIT)]
        assert found["last loss"] == split[-1] and found["devices"] == 8
        assert found["largest difference"] == abs(split - alone).max() < 1e-5
        assert 0.5 < alone[0] - alone[-1]
        whole_model = whole.metrics[title(stack, ALONE)]["parameters here"]
        assert whole_model / 8 <= found["parameters here"] < 1.2 * whole_model / 8
    held = {claim["claim"]: claim["holds"] for claim in record(config)["claims"]}
    assert len(held) == 8
    assert all(holds for claim, holds in held.items() if "fell" not in claim), held


def test_bad_settings_are_refused_before_training(text, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "train", lambda *a, **k: pytest.fail("training started"))
    config = micro(text, results=tmp_path)
    monkeypatch.setattr(distributed, "launch", lambda *a, **k: pytest.fail("processes started"))
    for bad, message in [
        ({"length": 40}, "length: got 40, expected a multiple of 16"),
        ({"length": 40, "processes": 2}, "length: got 40, expected a multiple of 16"),
        ({"length": 40, "processes": 2, "devices": 6}, "a multiple of 12: two runs"),
        ({"stacks": ("hybird",)}, "stacks: got 'hybird', did you mean hybrid"),
        ({"devices": 9}, r"devices: got 9, but JAX has 8 \(cpu\).*JAX_NUM_CPU_DEVICES=9"),
        ({"text": tmp_path / "missing"}, "text: got .*missing, which does not exist"),
    ]:
        with pytest.raises(lab.UserError, match=message):
            long_context.main(replace(config, **bad))
    for bad, message in [
        ({"processes": 3}, "processes: got 3, expected a divisor of the 8 devices"),
        ({"processes": 0}, "processes: got 0, expected more than 0"),
        ({"devices": 0}, "devices: got 0, expected more than 0"),
    ]:
        with pytest.raises(lab.UserError, match=message):
            replace(config, **bad)


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


class Stopped(Exception):
    pass


def test_training_goes_on_over_fewer_devices(text, tmp_path, whole):
    config, read = micro(text), lab.read_text(text)
    seen = {}
    for count, last in [(8, 6), (2, None)]:
        seen[count] = []

        def watch(step, loss, rate, count=count, last=last):
            seen[count].append(step)
            if step == last:
                raise Stopped

        run = lambda count=count, watch=watch: long_context.train(
            replace(config, every=2), read, "attention", SPLIT, jax.devices()[:count],
            folder=tmp_path, watch=watch,
        )  # fmt: skip
        if last is not None:
            with pytest.raises(Stopped):
                run()
        else:
            losses = run().losses
    assert seen[2][0] == 4 and seen[2][-1] == 10  # found, and not repeated
    uninterrupted = whole.losses["attention, split"]
    np.testing.assert_array_equal(losses[:4], uninterrupted[:4])
    np.testing.assert_allclose(losses, uninterrupted, atol=1e-5)


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


def wait_for(true, process, seconds=60.0):
    """Waits until `true()`; fails when that takes too long or the process has ended before."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "took too long"
        assert process is None or process.poll() is None, "ended too early"
        time.sleep(0.01)


# ------------------------------------------------------------------------- several processes


def agrees(config, whole):
    """The losses that a run reported are those of this process, but for rounding."""
    found = record(config)["metrics"][0]
    for stack in config.stacks:
        for where in (ALONE, SPLIT):
            name = title(stack, where)
            assert abs(found[name]["last loss"] - whole.losses[name][-1]) < 1e-5
        assert found[title(stack, SPLIT)]["largest difference"] < 1e-5
        assert found[title(stack, SPLIT)]["devices"] == config.devices


def worker_pid(parent, index):
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    mark = f'"index": {index},'.encode()
    return next(int(c) for c in children if mark in Path(f"/proc/{c}/environ").read_bytes())


def test_a_killed_worker_ends_the_run_and_the_same_command_goes_on(text, tmp_path, whole):
    config = micro(text, results=tmp_path, stacks=("attention",), processes=2, devices=2)
    folder = long_context.checkpoints(config, lab.read_text(text))["attention, split"]
    process = subprocess.Popen(
        command(config), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: checkpoint.newest(folder) is not None, process)
    os.kill(worker_pid(process.pid, 1), signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 40
    assert process.returncode == 2
    pattern = (
        r"error: worker 1 of 2 was killed by signal 9 \(SIGKILL\) after step (\d+) of 'attention, "
        r"split'; the run is over. Start the same command again to go on from step (\d+) of "
        r"'attention, split'."
    )
    done, kept = map(int, re.search(pattern, said).groups())
    assert kept in (4, 8) and done >= kept == checkpoint.newest(folder)
    assert not list(tmp_path.glob("*.json"))

    again = subprocess.run(command(config), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "attention, one device: goes on from step 10" in again.stdout
    assert f"attention, split: goes on from step {kept}" in again.stdout
    steps = [int(s) for s in re.findall(r"attention, split +(\d+)/10", again.stdout)]
    assert steps[0] == kept and steps[-1] == 10  # none of those before was repeated
    agrees(config, whole)
    assert not (tmp_path / "checkpoints").exists()


def by_slurm(command):
    """What becomes of two tasks of a command, with two devices each, that SLURM started."""
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "JAX_NUM_CPU_DEVICES": "2",
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | slurm | {"SLURM_PROCID": str(index)},
        )
        for index in range(2)
    ]  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # neither waits for the other's pipe
        said = list(pool.map(lambda task: task.communicate(timeout=120), tasks))
    for task, (_, errors) in zip(tasks, said, strict=True):
        assert task.returncode == 0, errors
    return [out for out, _ in said]


def test_a_cluster_starts_the_processes_itself():
    member = """
import jax
from attnjax.lab import distributed
with distributed.member(True):
    distributed.agree("nothing", 7)
    print(jax.process_index(), jax.process_count(), jax.device_count())
"""
    said = by_slurm([sys.executable, "-c", member])
    assert [out.split()[-3:] for out in said] == [["0", "2", "4"], ["1", "2", "4"]]


@pytest.mark.slow
def test_a_run_of_a_cluster_says_what_one_process_says(text, tmp_path, whole):
    config = micro(text, results=tmp_path, stacks=("hybrid",), processes="cluster")
    config = replace(config, every=config.steps)
    said = by_slurm(command(config))
    for out in said:
        assert "4 devices (cpu), 2 process(es)" in out
    assert "claims hold" in said[0] and "claims hold" not in said[1]
    agrees(replace(config, devices=4), whole)


def test_where_there_is_no_cluster_the_command_says_so(text, tmp_path):
    config = micro(text, results=tmp_path, processes="cluster")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(command(config), cwd=ROOT, capture_output=True, text=True, env=clean)
    assert done.returncode == 2
    assert "error: processes: got cluster, expected to be started by one that JAX" in done.stderr
