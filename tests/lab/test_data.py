"""Data: real text and images, split and cut the same way every time."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax import lab

ROOT = Path(__file__).parents[2]


def test_the_standard_library_is_split_by_file():
    text = lab.read_text()
    assert len(text.train) > 4_000_000 and len(text.validation) > 300_000
    assert b"import" in text.train[:100_000].tobytes()
    assert lab.START not in text.train and lab.START not in text.validation
    known = Path(json.__file__).read_bytes()
    assert (known in text.train.tobytes()) != (known in text.validation.tobytes())


def test_a_folder_is_split_by_file_and_a_file_by_position(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"<{i}>" * 5)
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "binary").write_bytes(b"a\0b")
    text = lab.read_text(tmp_path)
    train, validation = text.train.tobytes(), text.validation.tobytes()
    for i in range(40):
        mark = f"<{i}>".encode()
        assert (mark in train) != (mark in validation)
    assert b"secret" not in train + validation and b"a\0b" not in train + validation
    assert lab.read_text(tmp_path).digest == text.digest
    alone = tmp_path / "0.txt"
    alone.write_bytes(bytes(range(1, 101)))
    text = lab.read_text(alone)
    assert (*text.train, *text.validation) == tuple(range(1, 101)) and len(text.validation) == 10


def test_text_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    empty = tmp_path / "empty.txt"
    empty.touch()
    (tmp_path / "nothing").mkdir()
    for path, message in [
        (empty, "holds no text"),
        (tmp_path / "nothing", "holds no text"),
        (tmp_path / "missing", "does not exist"),
    ]:
        with pytest.raises(lab.UserError, match=f"text: got .*{path.name}.*{message}") as caught:
            lab.read_text(path)
        assert "\n" not in str(caught.value)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(lab.UserError, match="expected a readable file .Permission denied."):
        lab.read_text(empty)
    with pytest.raises(lab.UserError, match="got 5 bytes in one part, expected at least 9"):
        lab.windows(np.ones(5, np.uint8), 9, 2, seed=0, step=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(0, 9999), st.integers(1, 20))
def test_windows_are_cut_from_the_text_and_depend_on_seed_and_step_alone(seed, step, length):
    part = np.arange(20, 200, dtype=np.uint8)
    got = lab.windows(part, length, 5, seed=seed, step=step)
    np.testing.assert_array_equal(got, lab.windows(part, length, 5, seed=seed, step=step))
    assert got.shape == (5, length + 1) and (got[:, 0] == lab.START).all()
    np.testing.assert_array_equal(got[:, 1:], got[:, 1:2] + np.arange(length)[None])
    other = lab.windows(part, length, 5, seed=seed, step=step + 1)
    assert (got != other).any()


def test_even_windows_reach_both_ends():
    part = np.arange(1, 101, dtype=np.uint8)
    got = lab.evenly(part, 10, 4)
    assert got[0, 1] == 1 and got[-1, -1] == 100


def test_digits_are_real_and_no_image_is_in_both_parts():
    images = lab.digits()
    assert images.train.dtype == np.float32 and images.train.max() == 1.0
    assert len(images.train) + len(images.test) == 1797
    assert set(images.train_labels) == set(images.test_labels) == set(range(10))
    # The same pixels do occur twice in the data set, but only a few times.
    seen = {image.tobytes() for image in images.train}
    assert sum(image.tobytes() in seen for image in images.test) < 5
