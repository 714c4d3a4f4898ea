"""The numbers that recall's plot counts, and the settings that it refuses."""

from dataclasses import replace
from typing import Any, cast

import pytest

from attnjax import lab
from experiments.linear import recall


def test_the_numbers_kept_are_those_of_caches_and_states():
    c = replace(recall.Config(), width=32, window=8, heads=2)
    kept = {name: recall.kept(c, name) for name in recall.mixers(c)}
    assert kept["window"] == 2 * 8 * 32
    assert kept["linear"] == kept["gated delta"] == 2 * 16 * 16
    assert kept["hybrid"] == (kept["window"] + 3 * kept["gated delta"]) / 4


def test_a_hybrid_takes_turns_layer_by_layer():
    c = replace(recall.QUICK, depth=2)
    [task] = recall.studied(c).values()
    made: Any = cast(Any, task.arms["hybrid"])(0)
    first, second = made.stack.blocks
    assert hasattr(first.attention, "recipe") and not hasattr(second.attention, "recipe")


def test_bad_settings_are_told():
    for change, message in (
        ({"pairs": (2, 100)}, "pairs: got 100, expected at most keys 16"),
        ({"pairs": (2, 9)}, "length: got 24, expected at least 27"),
        ({"steps": 0}, "steps: got 0, expected more than 0"),
    ):
        with pytest.raises(lab.UserError, match=message):
            replace(recall.QUICK, **change)
