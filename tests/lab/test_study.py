"""Studies: arms and seeds trained and judged, kept, resumed, reported; times round by round."""

import dataclasses
import io
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from attnjax import lab
from attnjax.lab import Arm, Claim, Task, above, arms, checkpoint, files, of, timing


class Line(nnx.Module):
    """slope * x + shift, and what is not trained."""

    def __init__(self, seed, shift=0.0):
        self.slope = nnx.Param(jnp.full((1, 1), float(seed)))
        self.shift = nnx.Variable(jnp.float32(shift))

    def __call__(self, x):
        return x * self.slope[...] + self.shift[...]


def batch(seed, step):
    x = np.random.default_rng((seed, step)).normal(size=(4, 3)).astype(np.float32)
    return x, 2 * x


def score(model, batch):
    x, y = batch
    squares = jnp.mean((model(x) - y) ** 2)
    return {"loss": squares, "an other": -squares, "slope": model.slope[0, 0], "seen": model(x)}


MEASURES = ["loss", "an other", "slope", "loss, 2x", "an other, 2x", "slope, 2x"]


@dataclasses.dataclass(frozen=True)
class Config(lab.ModelConfig):
    steps: int = 30
    results: Path = Path("results/lines")


def studied(config):
    held = {"": batch(99, 0), "2x": batch(99, 1)}
    straight = {"free": Line, "shifted": lambda seed: Line(seed, 1.0)}
    again = {
        "judged": Arm(lambda seed, model: lab.like(Line(9, 5.0), model), "first: free", steps=0),
        "longer": Arm(lambda seed, model: lab.like(Line(9), model), "first: free"),
    }
    return {
        "first": Task(batch, score, held, config.steps, straight, unit="squares"),
        "second": Task(batch, score, batch(99, 0), config.steps, again),
    }


def claims(config):
    return (
        Claim("a shift costs", "1", of("first: shifted", "loss") - of("first: free", "loss"),
              above(0.1)),
    )  # fmt: skip


STUDY = lab.Study("Lines.\n\n    how", Config(), Config(steps=3), lab.Training(studied), claims)


def quiet():
    return Console(file=io.StringIO(), width=80, record=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, verdicts, what was printed) of a run that keeps its weights."""
    folder = tmp_path_factory.mktemp("lines") / "lines"
    config = dataclasses.replace(Config(), results=folder, keep=True, learning_rate=0.1)
    console = quiet()
    heard = []
    log = lambda run, step, numbers: heard.append((run, step, numbers))
    verdicts = STUDY.execute(config, log=log, console=console)
    return config, verdicts, console.export_text(), heard


def test_arms_and_seeds_are_judged_by_every_measure(finished):
    config, verdicts, screen, _ = finished
    record = json.loads((config.results / "result.json").read_text())
    rows = ["first: free", "first: shifted", "second: judged", "second: longer"]
    assert [list(seed) for seed in record["metrics"]] == [rows] * 3
    for seed in record["metrics"]:
        assert list(seed["first: free"]) == MEASURES
        assert seed["first: free"]["loss"] < 0.5 < seed["first: shifted"]["loss"]
        # the same parameters in another model, which its own shift of 5 spoils
        assert seed["second: judged"]["slope"] == seed["first: free"]["slope"]
        assert seed["second: judged"]["loss"] > 20 > seed["second: longer"]["loss"]
        assert seed["second: longer"]["slope"] != seed["first: free"]["slope"]
    assert verdicts[0].word == "holds" and "holds    a shift costs [paper: 1]" in screen
    assert record["parameters"] == dict.fromkeys(rows, 1)
    assert max(map(len, screen.splitlines()[:-1])) <= 80  # the last has a path
    assert sorted(p.name for p in config.results.iterdir()) == [
        "loss-first.png", "loss-second.png", "measures-first.png", "measures-second.png",
        "report.md", "result.json", "weights",
    ]  # fmt: skip


def test_the_validation_curve_is_of_what_is_minimized(tmp_path):
    config = dataclasses.replace(Config(), results=tmp_path, seeds=1)
    result = STUDY.run(config, "key", lab.Place(tmp_path))
    ((curve,), (losses,)) = (x["first"]["free"] for x in (result.validation, result.losses))
    assert len(curve) == 15 and len(losses) == 30
    assert curve[-1] == np.float32(result.seeds[0]["first: free"]["loss"])


def test_names_are_known_before_anything_is_trained(finished):
    config, *_ = finished
    record = json.loads((config.results / "result.json").read_text())
    assert STUDY.run.names(config) == {row: list(x) for row, x in record["metrics"][0].items()}
    unknown = dataclasses.replace(
        STUDY, claims=lambda c: [Claim("x", "", of("first: fre", "loss"), above(0))]
    )
    with pytest.raises(lab.UserError, match="did you mean 'first: free'"):
        unknown.execute(config, console=quiet())


def test_kept_weights_are_loaded(finished):
    config, *_ = finished
    record = json.loads((config.results / "result.json").read_text())
    for row in ("first: free", "second: judged", "second: longer"):
        model = STUDY.load(row, seed=1, config=config)
        np.testing.assert_allclose(model.slope[0, 0], record["metrics"][1][row]["slope"], rtol=1e-6)
    with pytest.raises(lab.UserError, match="row: got 'x', expected one of first: free"):
        STUDY.load("x", config=config)
    missing = dataclasses.replace(config, results=config.results / "nowhere")
    with pytest.raises(lab.UserError, match="expected those of a run with --keep"):
        STUDY.load("first: free", config=missing)


def test_the_log_hears_losses_and_measures(finished):
    *_, heard = finished
    last = [numbers for run, step, numbers in heard if run == "first: free, seed 2" and step == 30]
    assert set(last[0]) == {"loss"} and set(last[-1]) == set(MEASURES)


def test_a_run_goes_on_where_it_was_killed_and_ends_with_the_same_numbers(
    finished, tmp_path, monkeypatch
):
    config, *_ = finished
    again = dataclasses.replace(config, results=tmp_path / "again", keep=False)
    judged = arms.train
    calls = []

    def dies(*args, **more):
        calls.append(more["folder"].name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return judged(*args, **more)

    monkeypatch.setattr(arms, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        STUDY.execute(again, console=quiet())
    (spent,) = (again.results / "checkpoints").glob("*.seconds")
    spent.write_text(str(float(spent.read_text()) + 1000))
    trained = []

    def counted(params, loss, batches, *args, **more):
        def noted(step):
            trained.append(more["folder"].name)
            return batches(step)

        return judged(params, loss, noted, *args, **more)

    monkeypatch.setattr(arms, "train", counted)
    STUDY.execute(again, console=quiet())
    assert set(calls[:4]).isdisjoint(trained) and len(trained) == 5 * 30
    read = lambda c: json.loads((c.results / "result.json").read_text())
    assert read(again)["metrics"] == read(config)["metrics"]
    assert read(again)["seconds"] > 1000  # those before the interruption count
    assert not (again.results / "checkpoints").exists()


def test_a_run_of_other_settings_is_set_aside(finished, tmp_path):
    config, *_ = finished
    folder = tmp_path / "lines"
    first = dataclasses.replace(config, results=folder, keep=False, seeds=1, steps=2)
    STUDY.execute(first, console=quiet())
    before = (folder / "result.json").read_text()
    console = quiet()
    STUDY.execute(dataclasses.replace(first, steps=3), console=console)
    (aside,) = (p for p in tmp_path.iterdir() if p != folder)
    assert (aside / "result.json").read_text() == before
    assert "held a run with steps 2 (now 3); it is now in" in console.export_text()
    STUDY.execute(dataclasses.replace(first, steps=3), console=quiet())  # the same: in its place
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    config = dataclasses.replace(Config(), results=tmp_path / "full", seeds=1, steps=8)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(lab.UserError, match=r"step 8 cannot be written .*No space left.*kept"):
            STUDY.execute(config, console=quiet())
    with monkeypatch.context() as patch:
        patch.setattr("attnjax.lab.report.write_atomically", full)
        with pytest.raises(lab.UserError, match=r"report cannot be written .*No space left"):
            STUDY.execute(config, console=quiet())
    assert (config.results / "checkpoints").exists()
    assert len(STUDY.execute(config, console=quiet())) == 1


def test_efforts_have_settings_and_folders_of_their_own():
    assert STUDY.sized("full") == Config()
    quick, smoke = STUDY.sized("quick"), STUDY.sized("smoke")
    assert quick == Config(steps=3, results=Path("results/lines-quick"))
    assert (smoke.seeds, smoke.depth, smoke.results.name) == (1, 2, "lines-smoke")


def test_the_command_line_reads_settings_and_shows_errors_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    STUDY.main(arguments=["--smoke", "--results", str(tmp_path / "x"), "--learning-rate", "0.2"])
    record = json.loads((tmp_path / "x" / "result.json").read_text())
    assert record["effort"] == "smoke" and record["config"]["learning_rate"] == 0.2
    said = capsys.readouterr().out
    assert "claims: 0 holds, 0 fails, 1 untested" in said and "2/2" in said
    with pytest.raises(SystemExit) as caught:
        STUDY.main(arguments=["--steps", "0"])
    assert caught.value.code == 2
    assert "steps: got 0, expected more than 0" in capsys.readouterr().err


def test_an_arm_needs_its_source_before_it():
    backwards = lambda config: dict(reversed(studied(config).items()))
    with pytest.raises(lab.UserError, match="source: got 'first: free', expected an arm before it"):
        lab.Training(backwards).names(Config())


# ----------------------------------------------------------------------------------------- times


@dataclasses.dataclass(frozen=True)
class Lengths(lab.TimingConfig):
    results: Path = Path("results/times")


def cells(config):
    wait = lambda: jax.block_until_ready(jnp.zeros(3))
    return [lab.Cell(T, {"a": lambda: wait, "b": lambda: wait}) for T in (64, 128)]


def growth(config, seconds):
    return {row: {"T^": timing.exponent(each)} for row, each in seconds.items()}


TIMES = lab.Study(
    "Times.", Lengths(), Lengths(),
    lab.Timing(cells, growth, lambda config: {("a", "peak MB"): lambda: 7.0}),
    lambda config: [Claim("a over b", "", of("a", "T=64") / of("b", "T=64"), above(0.001))],
)  # fmt: skip


def test_rounds_of_times_are_judged_as_seeds_are(tmp_path, monkeypatch):
    config = dataclasses.replace(Lengths(), results=tmp_path / "times")
    (verdict,) = TIMES.execute(config, console=quiet())
    record = json.loads((config.results / "result.json").read_text())
    assert len(record["metrics"]) == 5
    for each in record["metrics"]:
        assert list(each["a"]) == ["T=64", "T=128", "T^", "peak MB"]
        assert each["a"]["peak MB"] == 7.0 and each["b"]["T=64"] > 0
    assert len(verdict.values) == 5
    assert TIMES.run.names(config) == {n: list(x) for n, x in record["metrics"][0].items()}


def test_cells_that_were_timed_are_not_timed_again(tmp_path, monkeypatch):
    config = dataclasses.replace(Lengths(), results=tmp_path / "times")
    counted = []
    turns = timing.take_turns

    def dies(runs, rounds):
        counted.append(rounds)
        if len(counted) == 2:
            raise KeyboardInterrupt
        return turns(runs, rounds)

    monkeypatch.setattr(timing, "take_turns", dies)
    with pytest.raises(KeyboardInterrupt):
        TIMES.execute(config, console=quiet())
    TIMES.execute(config, console=quiet())
    assert counted == [5, 5, 5]


# --------------------------------------------------------------------------------------- reports


def test_reports_say_the_same_three_times(finished):
    config, verdicts, screen, _ = finished
    report = (config.results / "report.md").read_text()
    record = json.loads((config.results / "result.json").read_text())
    (verdict,), (told,) = verdicts, record["claims"]
    assert told["verdict"] == verdict.word and told["measured"] == verdict.measured
    assert told["low"] == verdict.low and told["values"] == list(verdict.values)
    for text in (" ".join(screen.split()), report):
        assert verdict.measured in text and "a shift costs" in text and "above 0.1" in text
    assert re.search(r"^\| \*\*holds\*\* \| a shift costs", report, re.MULTILINE)
    assert record["versions"]["jax"] == jax.__version__ and record["config"]["steps"] == 30
    assert "results" in record["config"] and record["config"]["results"] == "."


def test_wide_tables_become_several(tmp_path):
    from attnjax.lab.report import narrowed

    rows = [("", *(f"measure {i}" for i in range(12))), ("row", *["0.123 +- 0.1"] * 12)]
    parts = narrowed(rows, 80)
    assert [cell for part in parts for cell in part[0][1:]] == list(rows[0][1:])
    assert all(len(part) == 2 for part in parts) and len(parts) == 3


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_atomically(path, b"old")

    def refuse(source, target):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(lab.UserError, match="results: got .*file/x, expected a writable folder"):
        lab.results_folder(tmp_path / "file" / "x")
    assert lab.results_folder(tmp_path / "new" / "x").is_dir()
