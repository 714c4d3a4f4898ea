"""Long context: many devices and processes, one loss; what is killed goes on where it was."""

import io
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
from rich.console import Console

from attnjax import lab
from attnjax.lab import checkpoint, distributed
from experiments.parallel import long_context
from experiments.parallel.long_context import ALONE, APART, SPLIT, STACKS, STUDY
from tests.helpers import by_slurm, sample, wait_for

ROOT = Path(__file__).parents[3]
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


def command(config):
    """The command line of a config."""
    given = []
    for name, value in vars(config).items():
        if value is not None:
            given += [f"--{name.replace('_', '-')}"]
            given += map(str, value if isinstance(value, tuple) else (value,))
    return [sys.executable, "-m", "experiments.parallel.long_context", *given]


def record(config):
    return json.loads((config.results / "result.json").read_text())


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """(config, result) of an uninterrupted run over 8 devices, in this process."""
    config = micro(text, results=tmp_path_factory.mktemp("whole") / "run")
    caught = []
    spy = lambda c, key, place: caught.append(long_context.Everywhere()(c, key, place)) or caught[0]
    spy.names = long_context.Everywhere().names
    replace(STUDY, run=spy).execute(config, console=Console(file=io.StringIO()))
    return config, caught[0]


# ------------------------------------------------------------------------- one process


@pytest.mark.parametrize("name", sample(["hybrid"], STACKS, pytest.mark.slow))
def test_split_over_devices_the_gradient_is_that_of_the_definition(name, text):
    config, read = micro(text), lab.read_text(text)
    split = long_context.Stack(config, name, SPLIT, jax.devices())
    _, params = split.model(0)
    got = jax.jit(jax.value_and_grad(split.loss))(params, split.batch(read, 0, 3))
    drawn = lab.windows(read.train, config.length, config.batch, seed=0, step=3)
    mixers = STACKS[name](config, "dense", "recurrent")
    shape = lab.Shape(config.width, config.depth, config.heads, config.length)
    plain, _ = nnx.split(lab.TinyLM(shape, mixers, rngs=nnx.Rngs(0)))

    def definition(params):
        logits, _ = nnx.merge(plain, params)(jnp.asarray(drawn[:, :-1]))
        return lab.cross_entropy(logits, jnp.asarray(drawn[:, 1:])).mean()

    want = jax.jit(jax.value_and_grad(definition))(params)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert abs(w).max() > 0
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
def test_a_run_in_one_process_is_that_of_one_device(whole):
    config, result = whole
    names = {row: set(x) for row, x in STUDY.run.names(config).items()}
    (found,) = result.seeds
    assert {row: set(x) for row, x in found.items()} == names
    assert record(config)["metrics"] == [found]
    assert not (config.results / "checkpoints").exists()
    for stack in STACKS:
        runs = {where: curves[0] for where, curves in result.losses[stack].items()}
        split, apart = found[f"{stack}: {SPLIT}"], found[f"{stack}: {APART}"]
        assert split["last loss"] == runs[SPLIT][-1] and 0.5 < runs[ALONE][0] - runs[ALONE][-1]
        assert split["largest difference"] == abs(runs[SPLIT] - runs[ALONE]).max() < 1e-5
        assert apart["largest difference"] > 1e-3
        whole_model = result.parameters[f"{stack}: {SPLIT}"]
        assert whole_model / 8 <= split["parameters here"] < 1.2 * whole_model / 8
        assert found[f"{stack}: {ALONE}"]["parameters here"] == whole_model
    verdicts = [claim.judge([found] * 3) for claim in STUDY.claims(config)]
    assert [v.word for v in verdicts] == ["holds"] * len(STACKS)


def test_bad_settings_are_refused_before_anything_starts(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab, "train", lambda *a, **k: pytest.fail("training started"))
    monkeypatch.setattr(distributed, "launch", lambda *a, **k: pytest.fail("processes started"))
    config = micro(text, results=tmp_path)
    for bad, message in [
        ({"length": 40}, "length: got 40, expected a multiple of 16"),
        ({"length": 40, "processes": 2}, "length: got 40, expected a multiple of 16"),
        ({"length": 40, "processes": 2, "devices": 6}, "a multiple of 12: two runs"),
        ({"stacks": ("hybird",)}, "stacks: got 'hybird', did you mean hybrid"),
        ({"processes": 3}, "processes: got 3, expected a divisor of the 8 devices"),
        ({"processes": 0}, "processes: got 0, expected more than 0"),
        ({"devices": 0}, "devices: got 0, expected more than 0"),
    ]:
        with pytest.raises(lab.UserError, match=message):
            replace(config, **bad)
    for bad, message in [
        (["--devices", "16", "--length", "32"], "got 16, but JAX has 8 (cpu)"),
        (["--processes", "2", "--text", str(tmp_path / "missing")], "missing, which does not exis"),
    ]:
        with pytest.raises(SystemExit):
            STUDY.main(arguments=["--quick", "--results", str(tmp_path), *bad])
        assert message in capsys.readouterr().err


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_training_goes_on_over_fewer_devices(text, tmp_path, whole):
    config, read = micro(text), lab.read_text(text)
    seen, losses = {8: [], 2: []}, np.zeros(0)
    for count, last in [(8, 6), (2, None)]:

        def watch(step, loss, rate, count=count, last=last):
            seen[count].append(step)
            if step == last:
                raise Stopped

        stack = long_context.Stack(
            replace(config, every=2), "attention", SPLIT, jax.devices()[:count]
        )
        run = lambda stack=stack, watch=watch: stack.train(read, 0, folder=tmp_path, watch=watch)
        if last is not None:
            with pytest.raises(Stopped):
                run()
        else:
            losses = run().losses
    assert seen[2][0] == 4 and seen[2][-1] == 10  # found, and not repeated
    uninterrupted = whole[1].losses["attention"][SPLIT][0]
    np.testing.assert_array_equal(losses[:4], uninterrupted[:4])
    np.testing.assert_allclose(losses, uninterrupted, atol=1e-5)


def test_checkpoints_are_found_wherever_it_runs(text):
    config, read = micro(text), lab.read_text(text)
    same = long_context.runs_of(config, read)
    for free in ({"processes": 2}, {"devices": 4}, {"every": 3}, {"seeds": 2}):
        assert long_context.runs_of(replace(config, **free), read) == same
    assert long_context.runs_of(replace(config, width=32), read) != same


# ------------------------------------------------------------------------- several processes


def agrees(config, whole, devices):
    """The losses that a run reported are those of this process, but for rounding."""
    found, want = record(config)["metrics"][0], whole[1].seeds[0]
    for stack in config.stacks:
        split = found[f"{stack}: {SPLIT}"]
        assert split["largest difference"] < 1e-5
        for where in (ALONE, SPLIT):
            row = f"{stack}: {where}"
            assert abs(found[row]["last loss"] - want[row]["last loss"]) < 1e-5
        whole_model = found[f"{stack}: {ALONE}"]["parameters here"]
        assert 1 / devices <= split["parameters here"] / whole_model < 1.2 / devices


def worker_pid(parent, index):
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    mark = f'"index": {index},'.encode()
    return next(int(c) for c in children if mark in Path(f"/proc/{c}/environ").read_bytes())


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_the_same_command_goes_on(text, tmp_path, whole):
    config = micro(text, results=tmp_path, stacks=("attention",), processes=2, devices=2)
    folder = long_context.runs_of(config, lab.read_text(text)) / "attention--split--seed-0"
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
        r"error: worker 1 of 2 was killed by signal 9 \(SIGKILL\) after step (\d+) of 'attention: "
        r"split, seed 0'; the run is over. Start the same command again to go on from step (\d+) "
        r"of 'attention--split--seed-0'."
    )
    match = re.search(pattern, said)
    assert match is not None, said
    done, kept = map(int, match.groups())
    assert kept in (4, 8) and done >= kept == checkpoint.newest(folder)
    assert not list(tmp_path.glob("*.json"))

    again = subprocess.run(command(config), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    steps = [int(s) for s in re.findall(r"attention: split +(\d+)/10", again.stdout)]
    assert steps[0] == kept and steps[-1] == 10  # none of those before was repeated
    assert again.stdout.count("claims: ") == 1  # one process reports
    agrees(config, whole, 2)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_of_a_cluster_says_what_one_process_says(text, tmp_path, whole):
    config = micro(text, results=tmp_path, stacks=("hybrid",), processes="cluster")
    config = replace(config, every=config.steps)
    said = by_slurm(command(config))
    for out in said:
        assert "4 devices (cpu), 2 process(es)" in out
    assert "claims: " in said[0] and "claims: " not in said[1]
    agrees(config, whole, 4)


def test_where_there_is_no_cluster_the_command_says_so(text, tmp_path):
    config = micro(text, results=tmp_path, processes="cluster")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(command(config), cwd=ROOT, capture_output=True, text=True, env=clean)
    assert done.returncode == 2
    assert "error: processes: got cluster, expected to be started by one that JAX" in done.stderr
