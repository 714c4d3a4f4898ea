"""The lab: data, models, training that survives a kill, claims, reports and plots."""

import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from attnjax import lab
from attnjax.lab import checkpoint, plots
from attnjax.lab.models import patches
from attnjax.lab.report import write_atomically
from attnjax.nn import HeadGate

ROOT = Path(__file__).parents[2]


def causal(q, k, v):
    """Softmax attention, written out, so that the lab's tests need no engine."""
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / q.shape[-1] ** 0.5
    future = jnp.triu(jnp.ones(scores.shape[-2:], bool), 1)[None, None]
    return jnp.einsum("BNTS,BSND->BTND", jax.nn.softmax(jnp.where(future, -1e9, scores)), v)


# --- data


def test_the_standard_library_is_split_by_file():
    text = lab.read_text()
    assert len(text.train) > 4_000_000 and len(text.validation) > 300_000
    assert b"import" in text.train[:100_000].tobytes()
    assert lab.START not in text.train and lab.START not in text.validation
    known = Path(json.__file__).read_bytes()
    assert (known in text.train.tobytes()) != (known in text.validation.tobytes())


def test_a_folder_is_split_by_file_and_a_file_by_position(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"<{i}>" * 5)
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "binary").write_bytes(b"a\0b")
    text = lab.read_text(tmp_path)
    train, validation = text.train.tobytes(), text.validation.tobytes()
    for i in range(40):
        mark = f"<{i}>".encode()
        assert (mark in train) != (mark in validation)
    assert b"secret" not in train + validation and b"a\0b" not in train + validation
    assert lab.read_text(tmp_path).digest == text.digest
    alone = tmp_path / "0.txt"
    alone.write_bytes(bytes(range(1, 101)))
    text = lab.read_text(alone)
    assert (*text.train, *text.validation) == tuple(range(1, 101)) and len(text.validation) == 10


def test_text_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    empty = tmp_path / "empty.txt"
    empty.touch()
    (tmp_path / "nothing").mkdir()
    for path, message in [
        (empty, "holds no text"),
        (tmp_path / "nothing", "holds no text"),
        (tmp_path / "missing", "does not exist"),
    ]:
        with pytest.raises(lab.UserError, match=f"text: got .*{path.name}.*{message}") as caught:
            lab.read_text(path)
        assert "\n" not in str(caught.value)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(lab.UserError, match="expected a readable file .Permission denied."):
        lab.read_text(empty)
    with pytest.raises(lab.UserError, match="got 5 bytes in one part, expected at least 9"):
        lab.windows(np.ones(5, np.uint8), 9, 2, seed=0, step=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(0, 9999), st.integers(1, 20))
def test_windows_are_cut_from_the_text_and_depend_on_seed_and_step_alone(seed, step, length):
    part = np.arange(20, 200, dtype=np.uint8)
    got = lab.windows(part, length, 5, seed=seed, step=step)
    np.testing.assert_array_equal(got, lab.windows(part, length, 5, seed=seed, step=step))
    assert got.shape == (5, length + 1) and (got[:, 0] == lab.START).all()
    np.testing.assert_array_equal(got[:, 1:], got[:, 1:2] + np.arange(length)[None])
    other = lab.windows(part, length, 5, seed=seed, step=step + 1)
    assert (got != other).any()


def test_even_windows_reach_both_ends():
    part = np.arange(1, 101, dtype=np.uint8)
    got = lab.evenly(part, 10, 4)
    assert got[0, 1] == 1 and got[-1, -1] == 100


def test_digits_are_real_and_no_image_is_in_both_parts():
    images = lab.digits()
    assert images.train.dtype == np.float32 and images.train.max() == 1.0
    assert len(images.train) + len(images.test) == 1797
    assert set(images.train_labels) == set(images.test_labels) == set(range(10))
    # The same pixels do occur twice in the data set, but only a few times.
    seen = {image.tobytes() for image in images.train}
    assert sum(image.tobytes() in seen for image in images.test) < 5


# --- models


def tiny(op=causal, positions="learned", **more):
    shape = lab.Shape(width=16, depth=2, heads=2, length=9, positions=positions)
    return lab.TinyLM(shape, op, rngs=nnx.Rngs(0), **more)


def test_the_intermediates_are_what_the_model_calculated():
    model = tiny(gate=HeadGate)
    tokens = jnp.arange(18).reshape(2, 9)
    logits, seen = model(tokens)
    assert seen["q"].shape == (2, 2, 9, 2, 8) and seen["residual"].shape == (3, 2, 9, 16)
    writes = seen["attention"] + seen["mlp"]
    np.testing.assert_allclose(seen["residual"][1:], seen["residual"][:-1] + writes, atol=1e-5)
    for i, block in enumerate(model.stack.blocks):
        normed = block.before_attention(seen["residual"][i])
        heads = causal(seen["q"][i], seen["k"][i], seen["v"][i])
        gated = heads * block.attention.gate(normed)[..., None]
        np.testing.assert_allclose(seen["attention"][i], block.attention.o(gated), atol=1e-5)
    want = model.head(model.stack.norm(seen["residual"][-1]))
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_causality_is_the_callables_alone():
    tokens = jnp.arange(9)[None]
    changed = tokens.at[0, 5].set(200)
    moved = lambda m: np.abs(np.asarray(m(changed)[0] - m(tokens)[0])).max((0, 2)) > 0
    np.testing.assert_array_equal(moved(tiny()), np.arange(9) >= 5)
    full = lambda q, k, v: jax.nn.dot_product_attention(q, k, v)
    assert moved(tiny(full)).all()


def test_without_positions_full_attention_cannot_tell_order():
    full = lambda q, k, v: jax.nn.dot_product_attention(q, k, v)
    tokens = jnp.arange(9)[None]
    for positions, same in (("none", True), ("learned", False)):
        model = tiny(full, positions)
        turned = model(tokens[:, ::-1])[0][:, ::-1]
        assert np.allclose(model(tokens)[0], turned, atol=1e-5) == same


def test_an_edit_replaces_what_flows():
    model = tiny()
    tokens = jnp.arange(9)[None]
    names = []
    model(tokens, lambda name, x: (names.append(name), x)[1])
    inside = ["attention_input", "attention", "residual", "mlp_input", "mlp_hidden", "mlp"]
    assert names == [
        "embedding", *(f"{i}.{n}" for i in range(2) for n in (*inside, "residual")), "output"
    ]  # fmt: skip
    silent = lambda name, x: x * 0 if name.endswith(("attention", "mlp")) else x
    _, seen = model(tokens, silent)
    np.testing.assert_array_equal(seen["residual"][-1], seen["residual"][0])


def test_vit_sees_patches_in_order_and_learns_digits():
    image = jnp.arange(16).reshape(1, 4, 4)
    np.testing.assert_array_equal(patches(image, 2)[0, 1], [2, 3, 6, 7])
    images = lab.digits()
    full = lambda q, k, v: jax.nn.dot_product_attention(q, k, v)
    shape = lab.Shape(width=16, depth=1, heads=2, length=16)
    graph, params = nnx.split(lab.TinyViT(shape, full, rngs=nnx.Rngs(0)))

    def loss(params, batch):
        return lab.cross_entropy(nnx.merge(graph, params)(batch[0])[0], batch[1]).mean()

    def batches(step):
        chosen = np.random.default_rng((0, step)).integers(0, len(images.train), 64)
        return images.train[chosen], images.train_labels[chosen]

    run = lab.train(params, loss, batches, lab.Optimizer(150, 1e-2))
    logits = jax.jit(lambda p, x: nnx.merge(graph, p)(x)[0])(run.params, images.test)
    assert (np.asarray(logits).argmax(-1) == images.test_labels).mean() > 0.8


def test_cross_entropy_is_in_nats():
    logits = np.random.default_rng(0).normal(size=(3, 4, 5))
    labels = np.array([[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]])
    want = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    )
    got = lab.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(got, want, rtol=1e-5)


# --- training and checkpoints


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


# --- claims and reports


def test_criteria_decide_and_print_themselves():
    for criterion, text, yes, no in [
        (lab.below(0.5), "< 0.5", 0.49, 0.5),
        (lab.above(-2), "> -2", -1.9, -2.0),
        (lab.between(1, 3), "1 to 3", 2.0, 3.5),
    ]:
        assert str(criterion) == text
        assert criterion(yes) and not criterion(no) and not criterion(float("nan"))


def test_a_verdict_is_on_the_mean_over_seeds():
    claim = lab.Claim("a", "b", lambda m: m["x"]["loss"], lab.below(2.5))
    verdict = claim.judge([{"x": {"loss": value}} for value in (1.0, 2.0, 6.0)])
    assert verdict.mean == 3.0 and verdict.sd == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert not verdict.holds and verdict.row() == ("a", "b", "3 +- 3", "< 2.5", "no")
    assert claim.judge([{"x": {"loss": 2.0}}]).row()[2:] == ("2", "< 2.5", "yes")


@dataclass(frozen=True)
class Config:
    steps: int = 3
    text: Path | None = None
    results: Path = Path("r")


def make_report(folder, seeds):
    claims = [
        lab.Claim("up | down", "2", lambda m: m["x"]["loss"], lab.above(1)),
        lab.Claim("never", "0", lambda m: float("nan"), lab.below(1)),
    ]
    console = Console(file=open(os.devnull, "w"), width=100, record=True)
    figures = {"bars": plots.bars(seeds, {"loss": "loss (nats)"})}
    verdicts = lab.report(
        "Title\n\n    command", claims, seeds, config=Config(), folder=folder, seconds=1.25,
        figures=figures, console=console,
    )  # fmt: skip
    console.file.close()
    return verdicts, console.export_text()


def test_report_says_the_same_three_times(tmp_path):
    seeds = [{"x": {"loss": 2.0}, "y": {"rate": 0.5}}, {"x": {"loss": 3.0}, "y": {"rate": 0.7}}]
    verdicts, screen = make_report(tmp_path, seeds)
    assert [v.holds for v in verdicts] == [True, False]
    text = (tmp_path / "report.md").read_text()
    assert r"| up \| down | 2 | 2.5 +- 0.7 | > 1 | yes |" in text
    assert "| never | 0 | nan +- nan | < 1 | no |" in text
    assert "| rate |  | 0.6 +- 0.1 |" in text
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["claims"][0] | {"sd": None} == {
        "claim": "up | down", "paper": "2", "criterion": "> 1", "values": [2.0, 3.0],
        "mean": 2.5, "sd": None, "holds": True,
    }  # fmt: skip
    assert record["claims"][1]["mean"] == "nan" and not record["claims"][1]["holds"]
    assert record["metrics"] == seeds and record["seconds"] == 1.2
    assert record["config"] == {"steps": 3, "text": None, "results": "r"}
    assert record["versions"]["jax"] == jax.__version__
    for words in ("2.5 +- 0.7", "yes", "no", "1 of 2 claims hold"):
        assert words in screen
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bars.png", "report.md", "result.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def refuse(source, target):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(lab.UserError, match="results: got .*file/x, expected a writable folder"):
        lab.results_folder(tmp_path / "file" / "x")
    assert lab.results_folder(tmp_path / "new" / "x").is_dir()


# --- plots, progress, command line


def test_plots_draw_what_they_are_given():
    curve = np.linspace(4, 2, 100)
    axes = lab.loss_curves({"a": [curve, curve + 1], "b": [curve]}).axes[0]
    assert axes.get_xlabel() == "training step" and "nats per byte" in axes.get_ylabel()
    line = axes.lines[0].get_ydata()
    assert line[0] == pytest.approx(4.5) and line[-1] == pytest.approx(curve[-3:].mean() + 0.5)
    maps = np.random.default_rng(0).random((3, 5, 5))
    figure = lab.attention_maps({"a": maps, "b": maps[:2]})
    images = [image for axes in figure.axes for image in axes.get_images()]
    np.testing.assert_allclose(images[0].get_array(), np.sqrt(maps[0].astype(np.float32)))
    assert len(images) == 5 and figure.axes[1].get_title() == "head 1"
    seeds = [{"a": {"x": 1.0}, "b": {"x": 3.0, "y": -2.0}}, {"a": {"x": 3.0}, "b": {"x": 3.0}}]
    seeds[1]["b"]["y"] = -4.0
    left, right = lab.bars(seeds, {"x": "x (nats)", "y": "y"}).axes
    assert [bar.get_width() for bar in left.patches] == [2.0, 3.0]
    assert right.patches[1].get_width() == -3.0 and left.get_xlabel() == "x (nats)"


def test_progress_away_from_a_terminal_is_lines(capsys):
    with lab.Bars(Console(width=100)) as bars:
        watch = bars.add("softmax", 10, runs=2)
        watch(0)(1, 5.5, 0.0)
        watch(0)(2, 5.4, 10.0)  # too soon for another line
        watch(1)(10, 1.25, 12_345.0)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "softmax 1/20 loss 5.500 0 tokens/s",
        "softmax 20/20 loss 1.250 12.3k tokens/s",
    ]


def test_names_are_chosen_with_a_hint():
    choices = {"softmax": 1, "softpick": 2, "sigmoid": 3}
    assert lab.choose("variants", ["sigmoid", "softmax"], choices) == {"sigmoid": 3, "softmax": 1}
    for names, message in [
        (["softmx"], "got 'softmx', did you mean softmax. expected some of softmax, softpick"),
        (["zzz"], "got 'zzz', expected some of"),
        ([], "got none"),
        (["sigmoid", "sigmoid"], "got sigmoid sigmoid, expected each name once"),
    ]:
        with pytest.raises(lab.UserError, match=f"variants: {message}"):
            lab.choose("variants", names, choices)


def test_a_run_key_tells_settings_apart():
    assert lab.run_key(Config(), 5) == lab.run_key(Config(), 5)
    keys = {lab.run_key(Config(steps), digest) for steps in (3, 4) for digest in (5, 6)}
    assert len(keys) == 4


def test_the_command_line_overrides_quick_and_shows_one_line(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--text", "a"])
    lab.run_cli(seen.append, "Doc.", Config(), Config(steps=1))
    monkeypatch.setattr(sys, "argv", ["x"])
    lab.run_cli(seen.append, "Doc.", Config(), Config(steps=1))
    assert seen == [Config(steps=1, text=Path("a")), Config()]

    def fail(config):
        raise lab.UserError("steps: got 3, expected 4")

    with pytest.raises(SystemExit) as caught:
        lab.run_cli(fail, "Doc.", Config(), Config())
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: steps: got 3, expected 4\n"
