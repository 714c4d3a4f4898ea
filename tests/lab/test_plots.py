"""Plots, progress, and what command lines share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from attnjax import lab
from attnjax.lab import plots


@dataclass(frozen=True)
class Config:
    steps: int = 3
    text: Path | None = None


def test_curves_are_smoothed_and_validation_stands_beside_them():
    curve = np.linspace(4, 2, 100)
    seen = {"a": [np.array([4.0, 3.0]), np.array([4.0, 5.0])], "b": [np.array([2.0, 1.0])]}
    left, right = plots.loss_curves(
        {"a": [curve, curve + 1], "b": [curve]}, seen, unit="nats per byte"
    ).axes
    assert left.get_xlabel() == "training step" and left.get_ylabel() == "nats per byte"
    line = left.lines[0].get_ydata()
    assert line[0] == pytest.approx(4.5) and line[-1] == pytest.approx(curve[-3:].mean() + 0.5)
    assert [list(x) for x in right.lines[0].get_data()] == [[50, 100], [4.0, 4.0]]
    assert len(plots.loss_curves({"a": [curve]}, {}).axes) == 1


def test_measures_are_drawn_as_differences_to_the_first_row():
    seeds = [{"t: a": {"x": 1.0}, "t: b": {"x": 3.0, "y": -2.0}} for _ in range(3)]
    seeds[1]["t: b"]["x"] = 3.5
    left, right = plots.differences(seeds, list(seeds[0])).axes
    dots = [line.get_xdata() for line in left.lines if line.get_marker() == "o"]
    assert [list(x) for x in dots] == [[0, 0, 0], [2, 2.5, 2]]
    assert left.get_xlabel() == "x: less a's\n(1 +- 0)"
    assert right.get_xlabel() == "y: less b's\n(-2 +- 0)"


def test_maps_have_a_panel_a_head():
    maps = np.random.default_rng(0).random((3, 5, 5))
    figure = lab.attention_maps({"a": maps, "b": maps[:2]})
    images = [image for axes in figure.axes for image in axes.get_images()]
    np.testing.assert_allclose(images[0].get_array(), np.sqrt(maps[0].astype(np.float32)))
    assert len(images) == 5 and figure.axes[1].get_title() == "head 1"


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
