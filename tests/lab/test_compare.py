"""Two finished runs beside each other."""

import io
import json

import pytest
from rich.console import Console

from attnjax import lab
from attnjax.lab import compare


def finished(folder, losses, **settings):
    folder.mkdir()
    metrics = [{"full": {"nats": x}} for x in losses]
    (folder / "result.json").write_text(json.dumps({"config": settings, "metrics": metrics}))
    return folder


def test_settings_and_paired_differences_are_told(tmp_path):
    one = finished(tmp_path / "one", [1.0, 2.0, 3.0], width=64, heads=4)
    two = finished(tmp_path / "two", [1.5, 2.5, 3.51], width=32, heads=4)
    console = Console(file=io.StringIO(), width=80, record=True)
    compare.compare(one, two, console)
    said = console.export_text()
    assert "settings: width 64 -> 32" in said
    (line,) = (line for line in said.splitlines() if line.startswith("full, nats"))
    assert line.split() == ["full,", "nats", "2", "+-", "1", "2.5", "+-", "1", "+0.503",
                            "+0.494", "to", "+0.513", "*"]  # fmt: skip


def test_what_cannot_be_compared_is_one_line(tmp_path):
    one = finished(tmp_path / "one", [1.0])
    with pytest.raises(lab.UserError, match="expected a folder with result.json"):
        compare.compare(one, tmp_path / "none")
    other = finished(tmp_path / "other", [])
    (other / "result.json").write_text(json.dumps({"config": {}, "metrics": [{"x": {"y": 1}}]}))
    with pytest.raises(lab.UserError, match="expected some rows that both have"):
        compare.compare(one, other)
