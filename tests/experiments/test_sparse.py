"""What needle asks and sparse_cost counts, and how both judge."""

from dataclasses import replace

import numpy as np
import pytest

from attnjax import Selection, lab, select
from experiments import needle, sparse_cost

# --------------------------------------------------------------------------------- sparse_cost


def test_the_share_is_that_of_the_blocks_that_causal_attention_sees():
    method = sparse_cost.METHODS["seer"]  # blocks of 64 queries and keys
    every = select.every_block(1, 256, 256, block_q=64, block_k=64)
    seen = replace(every, valid=np.tril(np.ones((4, 4), bool))[None, :, None])
    assert sparse_cost.share(method, seen, 256) == 1.0
    diagonal = replace(seen, valid=np.eye(4, dtype=bool)[None, :, None])
    assert sparse_cost.share(method, diagonal, 256) == pytest.approx(4 / 10)
    each = sparse_cost.METHODS["moba 128"]  # a query sees its own block and those before
    one = Selection(np.zeros((1, 256, 2, 1), int), np.ones((1, 256, 2, 1), bool), 1, 128)
    assert sparse_cost.share(each, one, 256) == pytest.approx(256 / (128 + 2 * 128))


def test_gains_and_ideals_are_ratios_to_the_rival_with_as_many_key_heads():
    lengths = (4096, 8192, 16384)
    config = replace(sparse_cost.Config(), methods=("moba 128", "nsa"), lengths=lengths)
    fwd = sparse_cost.FORWARD
    seconds = {
        ("dense", fwd): {4096: 1.0, 8192: 4.0, 16384: 16.0},
        ("dense, groups of 4", fwd): {4096: 0.5, 8192: 2.0, 16384: 8.0},
        ("moba 128 whole", fwd): {4096: 1.5, 8192: 2.0, 16384: 3.2},
        ("moba 128 attend", fwd): {4096: 1.0, 8192: 1.5, 16384: 2.4},
        ("nsa whole", fwd): {4096: 1.0, 8192: 2.5, 16384: 4.0},
        ("nsa attend", fwd): {4096: 0.5, 8192: 0.8, 16384: 1.5},
    }
    shares = {(m, T): 0.25 for m in config.methods for T in lengths}
    memory = {("moba 128", 16384): 100, ("moba 128", 32768): 210,
              ("nsa", 16384): 100, ("nsa", 32768): 400}  # fmt: skip
    result = sparse_cost.Result(seconds, shares, memory)
    verdicts = {c.what: c.judge([{}]) for c in sparse_cost.claims(config, result)}
    assert {what: (round(v.mean, 3), v.holds) for what, v in verdicts.items()} == {
        "moba 128 fwd: dense over whole op from T=8192 on, worst at T=8192": (2.0, True),
        "nsa fwd: dense over whole op from T=8192 on, worst at T=8192": (0.8, False),
        "moba 128: attention over share x dense from T=8192 on, median": (1.05, True),
        "nsa: attention over share x dense from T=8192 on, median": (1.175, True),
        "moba 128 fwd+bwd: exponent of peak memory, T=16384 to 32768": (1.07, True),
        "nsa fwd+bwd: exponent of peak memory, T=16384 to 32768": (2.0, False),
    }
    table = sparse_cost.metrics(config, result)
    assert table["moba 128 over ideal"] == {"T=4096": 4.0, "T=8192": 1.5, "T=16384": 0.6}
    assert 4096 < table["moba 128 whole fwd"]["crossover"] < 8192


def test_the_whole_op_is_its_selector_and_attention():
    method = sparse_cost.METHODS["moba 128"]
    args = sparse_cost.inputs(replace(sparse_cost.QUICK, heads=4, width=8), 2048, method.group)
    chosen = method.select(*args[:2], method.top_k(2048))
    assert chosen.indices.shape[-1] == 2  # an eighth of 16 blocks
    got = sparse_cost.attention(method, *args, chosen.indices, chosen.valid)
    np.testing.assert_allclose(got, method.whole(*args, 2), atol=1e-5)


def test_sparse_cost_refuses_what_cannot_be():
    for wrong, told in (
        ({"methods": ("mobba 128",)}, "did you mean moba 128"),
        ({"heads": 6}, "heads: got 6, expected a multiple of 4"),
        ({"lengths": (1024,)}, "lengths: got .*, expected two at least"),
    ):
        with pytest.raises(lab.UserError, match=told):
            replace(sparse_cost.Config(), **wrong)


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
