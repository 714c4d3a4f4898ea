"""What needle asks."""

from dataclasses import replace

import numpy as np
import pytest

from attnjax import lab
from experiments import needle

# -------------------------------------------------------------------------------------- needle

TINY = replace(needle.QUICK, length=32)


def test_every_question_has_its_needle_before_it():
    text = np.random.default_rng(0).integers(1, 128, (5, 33)).astype(np.int32)
    tokens, plain, answers = needle.sequences(TINY, text, seed=0, step=3)
    first = needle.BYTES + TINY.keys * TINY.values
    start = 33 - 2 * TINY.needles
    assert answers.sum(1).tolist() == [TINY.needles] * 5
    for row, is_plain, is_answer in zip(tokens, plain, answers, strict=True):
        found = [divmod(t - needle.BYTES, TINY.values) for t in row if needle.BYTES <= t < first]
        assert len(dict(found)) == TINY.needles  # each key once
        for i in np.flatnonzero(is_answer):
            asked, told = row[i] - first, row[i + 1] - first - TINY.keys
            assert i >= start and dict(found)[asked] == told
        assert (is_plain == (row[1:] < needle.BYTES)).all()
    changed = tokens[:, :start] != text[:, :start]
    assert changed.sum(1).tolist() == [TINY.needles] * 5 and not changed[:, 0].any()
    again = needle.sequences(TINY, text, seed=0, step=3)[0]
    assert np.array_equal(again, tokens)
    assert not np.array_equal(needle.sequences(TINY, text, seed=0, step=4)[0], tokens)


def test_scores_count_text_and_answers_apart():
    tokens = np.array([[5, 6, 300, 7, 310]])
    plain, answers = np.array([[1, 0, 1, 0]], bool), np.array([[0, 0, 0, 1]], bool)
    logits = np.zeros((1, 4, 400), np.float32)
    logits[0, 3, 310] = 50.0  # sure, and right; all else uniform
    found = needle.scores(lambda _: logits, (tokens, plain, answers))
    assert found["text"] == pytest.approx(np.log(400), rel=1e-5)
    assert found["answers"] == pytest.approx(0, abs=1e-5) and found["found"] == 1


def test_the_window_has_the_first_block_and_the_latest():
    config = replace(TINY, block=4, top_k=3)
    chosen = needle.latest(config, 1, 24, 6)
    for i, (row, ok) in enumerate(zip(chosen.indices[0, :, 0], chosen.valid[0, :, 0], strict=True)):
        own = i // 4
        assert set(np.asarray(row)[np.asarray(ok)].tolist()) == {0, max(own - 1, 0), own}


def test_needle_refuses_what_cannot_be():
    for wrong, told in (
        ({"methods": ("moba",)}, "expected full among them"),
        ({"needles": 5}, "needles: got 5, expected at most keys 4"),
        ({"times": (2, 4)}, "expected 1 and larger ones"),
        ({"top_k": 2}, "from 3 blocks to all"),
        ({"block": 7}, "expected a divisor of length"),
    ):
        with pytest.raises(lab.UserError, match=told):
            replace(TINY, **wrong)
