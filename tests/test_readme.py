"""What the README says runs, and what it links to is up to date."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_examples_run_one_after_the_other():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nassert all(abs(g).max() > 0 for g in (*grads, rest))"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "-> blockwise" in told.stdout


def test_the_table_of_papers_is_the_catalogues():
    told = subprocess.run(
        [sys.executable, "-m", "attnjax", "papers", "--markdown"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert told.stdout == (ROOT / "attnjax" / "PAPERS.md").read_text(), "run `make papers`"


def test_every_command_and_path_it_names_exists():
    for module in re.findall(r"python -m (experiments\.[\w.]+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for name in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE), name
    for path in re.findall(r"\]\((\S+)\)", README):
        assert (ROOT / path).exists(), path
    assert len(README.splitlines()) <= 150


def test_the_leaf_it_shows_is_the_leaf():
    """The function of the README's diff stands in the tree, white space aside."""
    squeeze = lambda text: re.sub(r"\s+", "", text).replace(",)", ")")
    (diff,) = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
    function = diff.replace("\n+", "\n").lstrip("+").split("OPS")[0]
    assert squeeze(function) in squeeze((ROOT / "attnjax/ops/softmax_core/cog.py").read_text())


@pytest.mark.slow
def test_the_experiment_of_the_docs_runs(tmp_path):
    text = (ROOT / "docs" / "experiments.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len(code.splitlines()) < 100
    (tmp_path / "alibi_or_rope.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "alibi_or_rope.py", "--smoke"], cwd=tmp_path, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "alibi_or_rope-smoke" / "report.md").exists()
