"""Every experiment: a record that fits, and no claim that holds in a null world.

A null world is one in which all arms are alike, whatever the level: nothing is better than anything
else, so no claim may hold there, whether because of noise or because it asks for nothing.
"""

import importlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from attnjax import lab
from attnjax.lab import claims
from experiments import __main__ as command

ROOT = Path(__file__).parents[2]
EVERY = command.experiments()


def study(name):
    return importlib.import_module(EVERY[name].module).STUDY


def null_worlds(run, config, names):
    """Lists of metrics, one a seed, of worlds without any effect."""
    noise = np.random.default_rng(0)
    if isinstance(run, lab.Timing):
        for power in (1.0, 2.0):
            times, besides = run.null(config, power)
            hasty = lambda times=times: {
                row: {T: s * np.exp(0.005 * noise.normal()) for T, s in each.items()}
                for row, each in times.items()
            }
            yield [run.metrics(config, hasty(), besides) for _ in range(5)]
        return
    for level in (1e-3, 0.05, 0.5, 0.97, 3.0, 1e3):
        yield [
            {
                row: {name: level * np.exp(0.005 * noise.normal()) for name in measures}
                for row, measures in names.items()
            }
            for _ in range(5)
        ]


@pytest.mark.parametrize("name", EVERY)
def test_no_claim_holds_without_its_effect(name):
    found = study(name)
    told, names = found.claims(found.config), found.run.names(found.config)
    claims.check_names(told, names)
    for world in null_worlds(found.run, found.config, names):
        held = [claim.says for claim in told if claim.judge(world).word == "holds"]
        assert not held, world[0]


@pytest.mark.parametrize("name", EVERY)
def test_the_record_fits(name):
    found, each = study(name), EVERY[name]
    assert found.title == each.title and len(each.title) <= 100
    assert found.config.results == found.quick.results == Path("results") / name
    assert f"python -m experiments.{each.topic}.{name}" in found.doc
    assert found.claims(found.config) and found.claims(found.quick)
    assert getattr(found.config, "seeds", getattr(found.config, "rounds", 3)) >= claims.SEEDS


def test_names_are_of_one_experiment_and_no_topic():
    assert len(EVERY) == len(list((ROOT / "experiments").glob("*/[a-z]*.py"))), "two of one name"
    assert {each.topic for each in EVERY.values()}.isdisjoint(EVERY)


def test_the_list_and_the_index_tell_the_verdicts(tmp_path, capsys, monkeypatch):
    name = "dual_triangle"
    result = lab.Result([{}])
    world = {
        row: dict.fromkeys(m, 1.0) for row, m in study(name).run.names(study(name).quick).items()
    }  # noqa: E501
    result.seeds = [world] * 3
    lab.results_folder(tmp_path / "results" / name)
    from attnjax.lab.report import report

    config = replace(study(name).quick, results=Path())
    report(
        study(name).doc, study(name).claims(config), result, effort="full", config=config,
        folder=tmp_path / "results" / name, seconds=130.0, figures={},
        console=Console(file=io.StringIO()),
    )  # fmt: skip
    docs = tmp_path / "docs"
    command.publish(tmp_path / "results", docs)
    index = (docs / "README.md").read_text()
    assert f"({name}/report.md)" in index and "0 holds, 2 fails, 2 untested; 2 minutes" in index
    assert (docs / name / "result.json").exists()
    monkeypatch.setattr(command, "DOCS", docs)
    capsys.readouterr()
    command.show()
    said = " ".join(capsys.readouterr().out.split())
    report_of = (docs / name / "report.md").read_text()
    assert report_of.startswith(f"# {name}\n\nClaimed: {EVERY[name].title}")
    assert "papers 378; 0 holds, 2 fails, 2 untested; 2 minutes" in said


def test_one_that_fails_is_told_after_all_have_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "__package__", "no_such_package")
    with pytest.raises(lab.UserError, match="1 of 1 failed: dual_triangle"):
        command.run(["dual_triangle"], "smoke")
    assert "No module named" in capsys.readouterr().out
    with pytest.raises(lab.UserError, match="did you mean position"):
        command.selected(["positon"])
