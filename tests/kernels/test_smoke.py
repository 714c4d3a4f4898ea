"""kernels.smoke and the script that runs all on a card, as far as a CPU goes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnjax.kernels import bench, smoke

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_step_passes_in_the_interpreter(capsys):
    smoke.main(smoke.Config(interpret=True))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(smoke.steps(smoke.Config(interpret=True))))
    assert not any("FAILED" in line for line in lines)


def test_the_first_failure_ends_it(capsys, monkeypatch):
    wrong = lambda form, z, run: {"holds": False, "wrong": ["out: 1 of 2"], "errors": {}}
    monkeypatch.setattr(smoke.forms, "verify", wrong)
    with pytest.raises(SystemExit, match="1"):
        smoke.main(smoke.Config(interpret=True))
    last = capsys.readouterr().out.splitlines()[-1]
    assert "causal, forward and backward: FAILED: AssertionError: out: 1 of 2" in last


def test_without_a_gpu_nothing_is_run_behind_the_first_step(tmp_path):
    """The script stops there, too, and has said why."""
    told = subprocess.run(
        ["bash", str(ROOT / "kernels" / "on_a_card.sh"), str(tmp_path)],
        capture_output=True, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable},
    )  # fmt: skip
    assert told.returncode == 1
    assert "needs a GPU, this process runs on cpu" in (tmp_path / "smoke.txt").read_text()
    assert "nothing else is run" in told.stdout
    assert not (tmp_path / "tests.txt").exists()


def test_the_cache_of_triton_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "here")
    with bench._own_cache_of_triton():
        os.environ["TRITON_CACHE_DIR"] = ""
    assert os.environ["TRITON_CACHE_DIR"] == "here"
    monkeypatch.delenv("TRITON_CACHE_DIR")
    with bench._own_cache_of_triton():
        os.environ["TRITON_CACHE_DIR"] = ""
    assert "TRITON_CACHE_DIR" not in os.environ
