"""The settings that the study of Titans refuses, and the texts that it judges."""

from dataclasses import replace

import pytest

from attnjax import lab
from experiments.linear import titans


def test_bad_settings_are_told():
    for change, message in (
        ({"pairs": 9}, "pairs: got 9, expected at most keys 8 and a third of length 12"),
        ({"pairs": 5}, "pairs: got 5, expected"),
        ({"times": 0}, "times: got 0, expected more than 0"),
    ):
        with pytest.raises(lab.UserError, match=message):
            replace(titans.QUICK, **change)


def test_longer_texts_have_as_many_pairs():
    [task] = titans.studied(titans.QUICK).values()
    near, far = task.judged().values()
    assert far[0].shape[1] == titans.QUICK.times * near[0].shape[1]
    assert far[2].sum() == near[2].sum() == near[0].shape[0] * titans.QUICK.pairs
