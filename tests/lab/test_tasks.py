"""Shared tasks: what is asked, and that only what is asked counts."""

import functools

import numpy as np
import pytest
from flax import nnx

from attnjax import lab, masks
from attnjax.lab import tasks
from attnjax.ops.position import dual_triangle_attention
from attnjax.ops.softmax_core import multi_head_attention

PRINTED = np.arange(32, 127, dtype=np.uint8)
TEXT = lab.Text(np.tile(PRINTED, 60), PRINTED, "made")


def oracle(logits):
    """A model that says these logits, whatever it is given."""
    return lambda tokens: (np.asarray(logits, np.float32), {})


def certain(tokens, classes):
    return 50.0 * np.eye(classes)[tokens]


@pytest.mark.parametrize(
    "draw",
    [tasks.argmax(5, 4, 9), tasks.recall(5, 3, 12, 6), tasks.copy(5, 4, 7),
     tasks.together(tasks.recall(2, 1, 12, 6), tasks.recall(3, 3, 12, 6))],
    ids=["argmax", "recall", "copy", "together"],
)  # fmt: skip
def test_batches_are_of_seed_and_step_and_scores_of_what_is_asked(draw):
    tokens, wanted, asked = draw(3, 4)
    assert len(tokens) == 5 and tokens.dtype == np.int32 and (asked.sum(1) > 0).all()
    for mine, again in zip((tokens, wanted, asked), draw(3, 4), strict=True):
        np.testing.assert_array_equal(mine, again)
    assert any((a != b).any() for a, b in zip(draw(3, 5), (tokens, wanted, asked), strict=True))
    classes = int(max(tokens.max(), wanted.max())) + 1
    right = tasks.answers(oracle(certain(wanted, classes)), (tokens, wanted, asked))
    assert right["accuracy"] == 1 and right["nats"] < 1e-6
    lied = certain(np.where(asked, wanted, (wanted + 1) % classes), classes)
    assert tasks.answers(oracle(lied), (tokens, wanted, asked))["accuracy"] == 1
    wrong = certain((wanted + 1) % classes, classes)
    assert tasks.answers(oracle(wrong), (tokens, wanted, asked))["accuracy"] == 0


def test_argmax_asks_for_the_place_of_the_largest_token():
    tokens, wanted, asked = tasks.argmax(50, 16, 64)(3, 4)
    assert (tokens[:, -1] == 64).all() and (asked == (np.arange(17) == 16)).all()
    for row, answer in zip(tokens[:, :-1], wanted[:, -1], strict=True):
        assert row[answer] == max(row) and len(set(row)) == 16
    assert np.bincount(wanted[:, -1], minlength=16).max() < 15


def test_recall_asks_once_for_each_key_after_the_pairs():
    tokens, wanted, asked = tasks.recall(20, 3, 14, 6)(0, 0)
    for row, answers, where in zip(tokens, wanted, asked, strict=True):
        pairs = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        assert len(pairs) == 3 and where.sum() == 3 and not where[:6].any()
        assert {key: pairs[key] for key in row[where]} == pairs
        assert [pairs[key] for key in row[where]] == list(answers[where])
        assert (row[6:][~where[6:]] == 0).all()


def test_copies_are_asked_for_after_the_bar():
    tokens, wanted, asked = tasks.copy(3, 4, 7)(0, 0)
    assert (tokens[:, 4] == 7).all()
    np.testing.assert_array_equal(wanted[:, 4:], tokens[:, :4])
    np.testing.assert_array_equal(asked[0], [False] * 4 + [True] * 4)


def test_hidden_bytes_are_a_seventh_and_only_they_count():
    text = tasks.Bytes(TEXT, 50, 200, 1)
    shown, tokens, hidden = text.masked(0, 1)
    assert 0.12 < hidden.mean() < 0.165 and tokens.shape == (200, 50)
    np.testing.assert_array_equal(shown == tasks.HIDDEN, hidden)
    np.testing.assert_array_equal(shown[~hidden], tokens[~hidden])
    lied = certain(np.where(hidden, tokens, 7), 128)
    assert tasks.hidden_byte(oracle(lied), (shown, tokens, hidden))["nats"] < 1e-6


def test_needles_are_found_by_who_reads_the_text():
    hay = tasks.Needles(needles=2, keys=4, values=3)
    text = tasks.Bytes(TEXT, 40, 6, 5)
    tokens, plain, asked = hay.batch(text)(1, 2)
    assert tokens.shape == (6, 41) and asked.sum(1).tolist() == [2] * 6
    first = 256 + 12
    for row in tokens:
        needles = row[(row >= 256) & (row < first)] - 256
        pairs = {key: value for key, value in (divmod(n, 3) for n in needles)}
        assert len(pairs) == 2
        for key, value in zip(row[-4::2] - first, row[-3::2] - first - 4, strict=True):
            assert pairs[key] == value
    assert not (plain & asked).any() and tokens.max() < hay.vocabulary
    found = tasks.needles(oracle(certain(tokens[:, 1:], hay.vocabulary)), (tokens, plain, asked))
    assert found["found"] == 1 and found["loss"] < 1e-5
    assert hay.held(text, 2)[0].shape == (5, 81)


def test_backcopy_copies_after_triggers_and_follows_bigrams_elsewhere():
    task = tasks.Backcopy(lab.read_text(), 64, 256)
    (tokens,) = task.batch(0, 1)
    assert (tokens[:, 0] == lab.START).all() and tokens[:, 1:].min() > 0 and tokens.max() < 64
    asks = task.asks(tokens)
    assert 0.1 < asks[:, 1:-1].mean() < 0.5 and not asks[:, 1].any()
    np.testing.assert_array_equal(tokens[:, 2:][asks[:, 1:-1]], tokens[:, :-2][asks[:, 1:-1]])
    assert not (asks[:, 1:] & asks[:, :-1]).any()  # two triggers never meet
    after = np.bincount(tokens[:, 1:][tokens[:, :-1] == 1], minlength=64)  # of the commonest
    chances = np.diff(task.sums.reshape(64, 64)[1] - 1, prepend=0)
    np.testing.assert_allclose(after / after.sum(), chances, atol=0.03)
    np.testing.assert_array_equal(tokens, task.batch(0, 1)[0])


def test_full_attention_without_codes_cannot_pass_the_argmax_probe():
    """It gives every order of the tokens one answer; causal and dual triangle do not."""
    (tokens, *_) = tasks.argmax(4, 16, 64)(0, 0)
    turned = np.concatenate([tokens[:, :-1][:, ::-1], tokens[:, -1:]], axis=1)
    causal = functools.partial(multi_head_attention, mask=masks.causal)
    shape = lab.Shape(16, 2, 2, 17, "none")  # one causal layer sees a bag of tokens, too
    ordered = {multi_head_attention: False, causal: True, dual_triangle_attention: True}
    for op, sees in ordered.items():
        model = nnx.jit(lab.TinyLM(shape, op, rngs=nnx.Rngs(0)))
        last = lambda x, model=model: model(x)[0][:, -1]
        assert np.allclose(last(tokens), last(turned), atol=1e-5) != sees
