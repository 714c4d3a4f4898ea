"""What an install consists of."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import attnjax

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta; build_meta.build_{}('{}')"


def run(*command, cwd):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel by way of an sdist, as an index would have them, of what git would clone."""
    pytest.importorskip("setuptools", "77", reason='pip install -e ".[dev]"')
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    folder = tmp_path_factory.mktemp("wheel")
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        copy = folder / "clone" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy, follow_symlinks=False)
    run(sys.executable, "-c", BUILD.format("sdist", folder), cwd=folder / "clone")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    run(
        sys.executable,
        "-c",
        BUILD.format("wheel", folder),
        cwd=archive.with_suffix("").with_suffix(""),
    )
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_installs_attnjax_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    version = attnjax.__version__
    assert {name.split("/")[0] for name in names} == {"attnjax", f"attnjax-{version}.dist-info"}
    for top, link in (("attnjax", ""), ("kernels", "attnjax/"), ("experiments", "attnjax/")):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / top).rglob("*.py")}
        assert {link + file for file in files} <= names
    assert {"attnjax/papers.csv", "attnjax/py.typed"} <= names


def test_a_wheel_runs_where_there_is_no_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import attnjax, attnjax.kernels.bench"
    )
    code += "; from attnjax.catalogue import papers; print(len(papers()), attnjax.__file__)"
    told = run(sys.executable, "-c", code, cwd=wheel.parent)
    assert told.split() == ["405", str(tmp_path / "attnjax" / "__init__.py")]
    experiment = (sys.executable, "-m", "attnjax.experiments.sinks.backcopy", "--help")
    assert "sinks.backcopy" in run(*experiment, cwd=tmp_path)
    listed = run(sys.executable, "-m", "attnjax.experiments", cwd=tmp_path)
    assert "python -m attnjax.experiments.TOPIC.NAME" in listed
    shared = (sys.executable, "-m", "attnjax.experiments.sparse.moba", "--help")
    assert "sparse.moba" in run(*shared, cwd=tmp_path)


def test_the_version_is_told():
    told = run(sys.executable, "-m", "attnjax", "--version", cwd=ROOT)
    assert told == f"attnjax {attnjax.__version__}\n"
