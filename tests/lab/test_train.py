"""The training loop and its checkpoints: AdamW, and runs that survive a kill."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attnjax import lab
from attnjax.lab import checkpoint

ROOT = Path(__file__).parents[2]


def quadratic(params, batch):
    return ((params["w"] - batch) ** 2).sum() + params["b"][0] ** 2


def start():
    return {"w": jnp.zeros((2, 3)), "b": jnp.ones(3)}


def noise(step):
    return np.random.default_rng((7, step)).normal(size=(2, 3)).astype(np.float32)


def test_the_loop_is_adamw_with_a_warm_up_and_a_cosine():
    optimizer = lab.Optimizer(steps=30, learning_rate=0.1, weight_decay=0.3, clip=0.5)
    run = lab.train(start(), quadratic, noise, optimizer)
    rate = lambda s: 0.1 * s / 3 if s < 3 else 0.01 + 0.09 * (1 + np.cos(np.pi * (s - 3) / 27)) / 2
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), start())
    first, second, losses = *(jax.tree.map(np.zeros_like, params) for _ in range(2)), []
    for step in range(30):
        w, b = params["w"], params["b"]
        losses.append(((w - noise(step)) ** 2).sum() + b[0] ** 2)
        gradient = {"w": 2 * (w - noise(step)), "b": np.array([2 * b[0], 0, 0])}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name, g in gradient.items():
            g = g * min(1, 0.5 / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            up = first[name] / (1 - 0.9 ** (step + 1))
            up = up / (np.sqrt(second[name] / (1 - 0.999 ** (step + 1))) + 1e-8)
            decay = 0.3 * params[name] if name == "w" else 0.0
            params[name] = params[name] - rate(step) * (up + decay)
    np.testing.assert_allclose(run.losses, losses, rtol=1e-4)
    for name in params:
        np.testing.assert_allclose(run.params[name], params[name], rtol=1e-3, atol=1e-4)


def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    optimizer = lab.Optimizer(steps=10)
    run = lab.train(start(), quadratic, noise, optimizer, folder=tmp_path, every=4)

    def never(step):
        raise AssertionError(f"step {step} was run again")

    again = lab.train(start(), quadratic, never, optimizer, folder=tmp_path)
    np.testing.assert_array_equal(again.losses, run.losses)
    np.testing.assert_array_equal(again.params["w"], run.params["w"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000008", "00000010"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    tree = lambda value: {"a": jnp.full((3, 2), value), "n": jnp.asarray(7, jnp.int32)}
    for step in (5, 9):
        checkpoint.save(tmp_path, step, tree(float(step)))
    files = [p for p in (tmp_path / "00000009" / "state").rglob("*") if p.stat().st_size > 100]
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    files[0].write_bytes(data)
    with pytest.warns(UserWarning, match=r"checkpoint .*00000009 is damaged: skipped"):
        step, found = checkpoint.latest(tmp_path, tree(0.0))
    assert step == 5
    jax.tree.map(np.testing.assert_array_equal, found, tree(5.0))
    (tmp_path / "00000005" / "seal.json").unlink()
    (tmp_path / "00000006.partial").mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert checkpoint.latest(tmp_path, tree(0.0)) is None
    first, second = (str(w.message) for w in caught)
    assert first.endswith("00000006.partial is half written: skipped")
    assert second.endswith("00000005 is damaged: skipped")


def test_a_checkpoint_of_another_model_is_an_error(tmp_path):
    checkpoint.save(tmp_path, 1, {"a": jnp.zeros(3)})
    with pytest.raises(ValueError, match="00000001 holds other shapes"):
        checkpoint.latest(tmp_path, {"a": jnp.zeros(4)})


# The process under test: trains a TinyLM, and kills itself without warning where it is told to.
VICTIM = """
import os, signal, sys
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from flax import nnx
from attnjax import lab
from attnjax.lab import checkpoint
folder, kill_at, kill_saving, out = sys.argv[1:]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
text = np.random.default_rng(0).integers(1, 256, 5000).astype(np.uint8)

def batches(step):
    if step == int(kill_at):
        die()
    return lab.windows(text, 8, 2, seed=3, step=step)

rename = os.replace
def replace(source, target):
    if Path(target).name == f"{int(kill_saving):08d}":
        die()
    rename(source, target)
checkpoint.os.replace = replace

op = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
shape = lab.Shape(width=16, depth=1, heads=2, length=8)
graph, params = nnx.split(lab.TinyLM(shape, op, rngs=nnx.Rngs(0)))
def loss(params, b):
    return lab.cross_entropy(nnx.merge(graph, params)(b[:, :-1])[0], b[:, 1:]).mean()
run = lab.train(params, loss, batches, lab.Optimizer(30), folder=Path(folder), every=6)
np.savez(out, run.losses, *map(np.asarray, jax.tree.leaves(run.params)))
"""


def test_killed_runs_end_with_the_same_bits(tmp_path):
    def victim(name, kill_at=-1, kill_saving=-1):
        command = [sys.executable, "-c", VICTIM, tmp_path / name, kill_at, kill_saving]
        return subprocess.run(
            [*map(str, command), str(tmp_path / f"{name}.npz")],
            cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        )  # fmt: skip

    whole = victim("whole")
    assert whole.returncode == 0, whole.stderr
    assert victim("killed", kill_at=10).returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["00000006"]
    assert victim("killed", kill_saving=18).returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "00000018.partial").exists()
    last = victim("killed")
    assert last.returncode == 0, last.stderr
    assert "00000018.partial is half written: skipped" in last.stderr
    want, got = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "killed.npz")
    assert len(want) == len(got) > 10
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert (want["arr_0"] > 0).all() and len(set(want["arr_0"])) == 30


def test_optimizer_needs_steps():
    with pytest.raises(lab.UserError, match="steps: got 0, expected at least 1"):
        lab.Optimizer(steps=0)
    assert isinstance(lab.Optimizer(1).transformation(), optax.GradientTransformation)
