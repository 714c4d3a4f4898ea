"""Experiments: command lines, and one run of a few seconds whose files must agree."""

import functools
import json
import operator
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import lab
from attnjax.nn import HeadGate
from experiments import attention_sinks, dual_triangle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of three small sources of the standard library."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("bisect.py", "heapq.py", "keyword.py"):
        (folder / name).write_bytes((Path(os.__file__).parent / name).read_bytes())
    return folder


def micro(text, results):
    return replace(
        attention_sinks.QUICK, variants=("softmax", "softpick"), seeds=2,
        steps=12, batch=2, width=16, depth=2, heads=2, length=16, judged=4, text=text,
        results=results,
    )  # fmt: skip


def complain(experiment, *arguments):
    """The exit status and the standard error of an experiment's command line."""
    command = [sys.executable, "-m", f"experiments.{experiment}", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_misspelled_variant_is_one_line_with_the_nearest_name(tmp_path):
    code, said = complain("attention_sinks", "--variants", "softmax", "sofpick", "--results",
                          tmp_path)  # fmt: skip
    assert code == 2
    assert said.startswith("error: variants: got 'sofpick', did you mean softpick? expected some")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", [attention_sinks, dual_triangle])
def test_bad_input_is_refused_before_training(module, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "train", lambda *a, **k: pytest.fail("training started"))
    (tmp_path / "file").touch()
    good = replace(module.QUICK, results=tmp_path / "results")
    for bad, message in [
        ({"results": tmp_path / "file" / "x"}, "results: got .*/file/x, expected a writable"),
        ({"text": tmp_path / "file"}, "text: got .*/file, which holds no text"),
        ({"text": tmp_path / "missing"}, "text: got .*/missing, which does not exist"),
    ]:
        with pytest.raises(lab.UserError, match=message):
            module.run(replace(good, **bad))
    with pytest.raises(lab.UserError, match="seeds: got 0, expected more than 0"):
        replace(good, seeds=0)


def test_settings_that_make_no_sense():
    sinks = attention_sinks.QUICK
    with pytest.raises(lab.UserError, match="variants: got softpick, expected softmax to compare"):
        attention_sinks.run(replace(sinks, variants=("softpick",)))
    with pytest.raises(lab.UserError, match="values: got 8, expected 16 to 255"):
        replace(dual_triangle.QUICK, values=8)


def test_the_command_line_reads_a_config(monkeypatch, capsys):
    for module in (attention_sinks, dual_triangle):
        monkeypatch.setattr(sys, "argv", ["x", "--quick", "--seeds", "7"])
        seen = []
        lab.run_cli(seen.append, module.__doc__, module.Config(), module.QUICK)
        assert seen == [replace(module.QUICK, seeds=7)]
    monkeypatch.setattr(sys, "argv", ["x", "--width", "0"])
    with pytest.raises(SystemExit):
        lab.run_cli(seen.append, "", attention_sinks.Config(), attention_sinks.QUICK)
    assert "width: got 0, expected more than 0" in capsys.readouterr().err


def test_all_variants_start_from_the_same_parameters_and_differ_in_attention(text):
    config = replace(micro(text, Path("unused")), depth=1)
    tokens = jnp.asarray(lab.evenly(lab.read_text(text).validation, config.length, 2))
    losses = {}
    for name, mechanism in attention_sinks.MECHANISMS.items():
        op = mechanism.attend(config.length)
        graph, params = attention_sinks.model(config, op, mechanism.gate, 0)
        losses[name] = float(
            jax.jit(attention_sinks.loss_of, static_argnums=0)(graph, params, tokens)
        )
        if mechanism.gate is None:
            plain = attention_sinks.model(config, attention_sinks.softmax(0), None, 0)[1]
            jax.tree.map(np.testing.assert_array_equal, params, plain)
        else:
            assert mechanism.gate is HeadGate
    assert len(set(losses.values())) == len(losses)


def test_a_micro_run_says_the_same_in_every_file(text, tmp_path):
    config = micro(text, tmp_path / "results")
    attention_sinks.main(config)
    files = sorted(p.name for p in config.results.iterdir())
    assert files == ["loss.png", "maps.png", "measures.png", "report.md", "result.json"]
    for name in files[:3]:
        assert (config.results / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((config.results / "result.json").read_text())
    report = (config.results / "report.md").read_text()
    expected = [c for name in config.variants for c in attention_sinks.CLAIMS[name]]
    assert [c["claim"] for c in record["claims"]] == [c.what for c in expected]
    compare = {"<": operator.lt, ">": operator.gt}
    for found, claim in zip(record["claims"], expected, strict=True):
        values = [claim.measure(metrics) for metrics in record["metrics"]]
        np.testing.assert_allclose(found["values"], values)
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["sd"] == pytest.approx(np.std(values, ddof=1))
        sign, limit = re.fullmatch(r"([<>]) (\S+)", found["criterion"]).groups()
        assert found["holds"] == compare[sign](found["mean"], float(limit))
        row = next(line for line in report.splitlines() if line.startswith(f"| {claim.what} |"))
        assert row.endswith(f"| {found['criterion']} | {'yes' if found['holds'] else 'no'} |")
    assert record["config"]["steps"] == 12 and record["config"]["text"] == str(text)
    for metrics in record["metrics"]:
        assert 3 < metrics["softmax"]["loss"] < 6
        assert metrics["softpick"]["zeros"] > 0.2 and metrics["softmax"]["zeros"] == 0
    assert record["metrics"][0] != record["metrics"][1]  # seeds differ


# Runs an experiment's `run` and dies without warning before the step with the number given.
VICTIM = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from attnjax import lab
from experiments import dual_triangle as experiment
out, text, fatal = sys.argv[1:]
draws, puzzle = 0, experiment.puzzle

def counted(*arguments):
    global draws
    draws += 1
    if draws == int(fatal):
        os.kill(os.getpid(), signal.SIGKILL)
    return puzzle(*arguments)

experiment.puzzle = counted
experiment.PROBED.pop("full")
experiment.FILLED = {"dual, none": experiment.FILLED["dual, none"]}
config = replace(
    experiment.QUICK, width=16, depth=1, heads=2, places=4, values=8, probe_steps=8,
    probe_batch=4, length=8, text_steps=4, text_batch=2, judged=2, text=Path(text),
    results=Path(out),
)
print(json.dumps([experiment.run(config).seeds, draws]))
"""


@pytest.mark.slow  # lab's tests kill its loop and long context's a whole run
def test_an_interrupted_experiment_ends_with_the_same_numbers(text, tmp_path):
    def victim(name, fatal=-1):
        command = [sys.executable, "-c", VICTIM, tmp_path / name, text, fatal]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    last_line = lambda done: json.loads(done.stdout.splitlines()[-1])
    whole = victim("whole")
    assert whole.returncode == 0, whole.stderr
    assert victim("killed", fatal=13).returncode == -signal.SIGKILL
    again = victim("killed")
    assert again.returncode == 0, again.stderr
    (want, all_draws), (got, fewer_draws) = last_line(whole), last_line(again)
    assert got == want
    assert fewer_draws == all_draws - 8  # one finished model was read and not trained again


def test_the_probe_asks_for_the_place_of_the_largest_token():
    config = dual_triangle.QUICK
    tokens, place = dual_triangle.puzzle(config, 50, 3, 4)
    assert tokens.shape == (50, config.places + 1) and (tokens[:, -1] == config.values).all()
    for row, answer in zip(tokens[:, :-1], place, strict=True):
        assert row[answer] == max(row) and len(set(row)) == config.places
    again = dual_triangle.puzzle(config, 50, 3, 4)[0]
    np.testing.assert_array_equal(tokens, again)
    assert np.bincount(place, minlength=config.places).max() < 15


def test_hidden_bytes_are_a_seventh_and_only_they_count():
    tokens = np.full((200, 50), 65, np.int32)
    shown, truth, hidden = dual_triangle.hide(tokens, 0, 1)
    assert 0.12 < hidden.mean() < 0.165 and (truth == 65).all()
    np.testing.assert_array_equal(shown == dual_triangle.HIDDEN, hidden)
    runs = dual_triangle.Runs(replace(dual_triangle.QUICK, depth=1), Path(), None)
    graph, params = runs.model(dual_triangle.full, "learned", 0)
    loss = functools.partial(dual_triangle.text_loss, graph, params)
    got = loss((shown[:2], truth[:2], hidden[:2]))
    lied = np.where(hidden, truth, 7)  # what is not hidden is not asked for
    np.testing.assert_allclose(loss((shown[:2], lied[:2], hidden[:2])), got, rtol=1e-6)


def test_full_attention_without_codes_cannot_pass_the_probe():
    config = replace(dual_triangle.QUICK, depth=2)  # one causal layer sees a bag of tokens too
    tokens, _ = dual_triangle.puzzle(config, 4, 0, 0)
    turned = np.concatenate([tokens[:, :-1][:, ::-1], tokens[:, -1:]], axis=1)
    runs = dual_triangle.Runs(config, Path(), None)
    for name, op in dual_triangle.PROBED.items():
        model = nnx.merge(*runs.model(op, "none", 0))
        last = jax.jit(lambda tokens, model=model: model(tokens)[0][:, -1])
        assert np.allclose(last(tokens), last(turned), atol=1e-5) == (name == "full")
