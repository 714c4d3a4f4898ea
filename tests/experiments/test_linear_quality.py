"""The experiments on linear attention: their tasks, their claims, and one run of a few seconds."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attnjax import lab
from experiments import linear_quality, recall, taylor_crossover

# ------------------------------------------------------------------------------------- recall

MICRO = replace(
    recall.QUICK, mixers=("window", "hybrid"), widths=(8,), heads=2, steps=3, batch=4, judged=8
)


def test_questions_ask_for_every_pair_once_after_all_are_told():
    c = replace(MICRO, keys=16)
    tokens, answers, asked = recall.questions(c, 5, 4, 20, seed=0, step=3)
    again = recall.questions(c, 5, 4, 20, seed=0, step=3)
    assert all((a == b).all() for a, b in zip((tokens, answers, asked), again, strict=True))
    for row, answer, places in zip(tokens, answers, asked, strict=True):
        told = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert len(told) == 4 and all(1 <= key <= 16 for key in told)
        assert all(17 <= value <= 32 for value in told.values())
        assert places.sum() == 4 and not places[:8].any()
        assert sorted(row[places]) == sorted(told)
        assert [told[key] for key in row[places]] == list(answer[places])
        assert (row[8:][~places[8:]] == recall.FILLER).all()


def test_a_batch_mixes_all_numbers_of_pairs():
    _, _, asked = recall.mixed(replace(MICRO, pairs=(2, 4), batch=6), seed=0, step=0)
    assert sorted(asked.sum(1)) == [2, 2, 2, 4, 4, 4]


def test_the_numbers_kept_are_those_of_caches_and_states():
    c = replace(recall.Config(), length=64, window=8, heads=2)
    kept = {name: m.kept(c, 32) for name, m in recall.contestants(8).items()}
    assert kept["softmax"] == 2 * 64 * 32 and kept["window"] == 2 * 8 * 32
    assert kept["gla"] == kept["delta"] == 2 * 16 * 16
    assert kept["hybrid"] == (kept["window"] + kept["gated delta"]) / 2


def test_recall_judges_at_the_smallest_width_with_the_most_pairs():
    c = replace(recall.Config(), mixers=("window", "linear", "gla", "hybrid"), widths=(32, 16))
    low, high = {"16 pairs": 0.25, "2x length": 0.1}, {"16 pairs": 0.75, "2x length": 0.5}
    table = {f"{name}, 16": low for name in c.mixers} | {"hybrid, 16": high}
    verdicts = [claim.judge([table]) for claim in recall.claims(c)]
    assert [v.mean for v in verdicts] == [0.5, 0.5, 0.5] and all(v.holds for v in verdicts)


def test_a_micro_run_of_recall_writes_its_files(tmp_path):
    recall.main(replace(MICRO, results=tmp_path))
    [metrics] = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert set(metrics) == {"window, 8", "hybrid, 8"}
    assert all(0 <= row["4 pairs"] <= 1 for row in metrics.values())
    for plot in ("trade.png", "loss.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "checkpoints").exists()


def test_bad_configs_of_recall_are_told():
    for change, message in (
        ({"mixers": ("gated_delta",)}, "mixers: got 'gated_delta', did you mean gated delta"),
        ({"pairs": (2, 100)}, "pairs: got 100, expected at most keys 16"),
        ({"pairs": (2, 9)}, "length: got 24, expected at least 27"),
        ({"widths": (15,)}, "widths: got 15, expected multiples of heads 2"),
        ({"steps": 0}, "steps: got 0, expected more than 0"),
    ):
        with pytest.raises(lab.UserError, match=message):
            replace(recall.QUICK, **change)


# ------------------------------------------------------------------------------ linear_quality


def test_only_divisive_attention_collides():
    shares = {
        name: linear_quality.collisions(linear_quality.IMAGE[name](linear_quality.QUICK, 0), 3)
        for name in ("softmax", "divisive", "injective")
    }
    assert shares == {"softmax": 0.0, "divisive": 1.0, "injective": 0.0}


def test_the_claims_compare_with_gla_and_softmax():
    table = {name: {"nats": nats} for name, nats in (
        ("gla", 2.0), ("safe features", 1.9), ("refined gate", 2.1), ("regla", 1.8),
    )}  # fmt: skip
    table |= {"softmax": {"accuracy": 0.9, "collisions": 0.0},
              "divisive": {"accuracy": 0.8, "collisions": 1.0},
              "injective": {"accuracy": 0.85, "collisions": 0.0},
              "injective, local": {"accuracy": 0.88}}  # fmt: skip
    held = [claim.judge([table]).holds for claim in linear_quality.claims()]
    assert held == [True, False, True, True, True, True, True, False]


def test_a_micro_run_of_linear_quality_writes_its_files(tmp_path, monkeypatch):
    for table, kept in ((linear_quality.TEXT, "regla"), (linear_quality.IMAGE, "injective, local")):
        for name in set(table) - {kept, "softmax", "divisive", "injective"}:
            monkeypatch.delitem(table, name)
    monkeypatch.setattr(linear_quality, "claims", lambda: ())
    text = tmp_path / "text"
    text.mkdir()
    for name in ("bisect.py", "heapq.py", "keyword.py"):
        (text / name).write_bytes((Path(os.__file__).parent / name).read_bytes())
    config = replace(
        linear_quality.QUICK, text=text, results=tmp_path / "out", width=8, length=8, text_steps=2,
        text_batch=2, image_steps=2, image_batch=2, judged=2,
    )  # fmt: skip
    linear_quality.main(config)
    [metrics] = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert np.isfinite(metrics["regla"]["nats"])
    assert 0 <= metrics["injective, local"]["accuracy"] <= 1


# ---------------------------------------------------------------------------- taylor_crossover


def test_the_forms_meet_where_the_linear_one_begins_to_be_faster():
    direct = {T: 1e-8 * T**2 for T in (64, 256, 1024, 4096)}
    linear = {T: 1e-5 * T for T in direct}
    assert taylor_crossover.meeting(direct, linear) == pytest.approx(1000)
    assert taylor_crossover.meeting(linear, direct) == 64
    assert taylor_crossover.meeting({64: 1.0, 256: 4.0}, {64: 2.0, 256: 8.0}) == float("inf")


def test_a_tiny_run_of_taylor_crossover_counts_and_measures(tmp_path):
    config = replace(
        taylor_crossover.QUICK, widths=(2, 4), lengths=(8, 16), rounds=1, results=tmp_path
    )
    taylor_crossover.main(config)
    [metrics] = json.loads((tmp_path / "result.json").read_text())["metrics"]
    # 4 T^2 H + 6 T^2 = T (4 H^3 + 10 H^2 + 9 H + 4) at H = 2: 14 T^2 = 94 T
    assert metrics["linear, H=2"]["counted"] == pytest.approx(94 / 14)
    assert metrics["direct, H=4"]["T=16"] > 0
    with pytest.raises(lab.UserError, match="lengths: got \\(8,\\), expected two at least"):
        replace(config, lengths=(8,))
