"""The benchmark of strategies: its numbers beside brute force, its refusals, and how it judges."""

import csv
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from attnjax import lab
from attnjax.lab.timing import BOTH, FORWARD
from attnjax.parallel.model.balance import areas, random_documents
from experiments import context_parallel as cp

pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")

T, P, H = 64, 8, 8
CONFIG = replace(cp.Config(), settings=((T, 4, 2),), modes=(FORWARD,), width=H, rounds=1)
FEW = replace(
    CONFIG, masks=("causal", "window", "documents"),
    ways=("dense", "jax.nn", "ring zigzag", "ulysses", "all-gather zigzag"),
)  # fmt: skip
# 4 heads cannot be shared by 8 devices, 8 can
BACK = replace(
    CONFIG, masks=("causal", "window"), ways=("blockwise", "ring contiguous", "ulysses"),
    settings=((T, 8, 2),), modes=(FORWARD, BOTH),
)  # fmt: skip
STRATEGIES = ("ring contiguous", "ring zigzag", "ring striped", "ulysses", "usp zigzag",
              "all-gather zigzag")  # fmt: skip


@pytest.fixture(scope="module")
def few():
    """Forward, with heads too few for Ulysses."""
    return cp.run(FEW)


@pytest.fixture(scope="module")
def back():
    """Forward and backward, with heads enough."""
    return cp.run(BACK)


def allowed(pattern):
    """The mask pair by pair."""
    ids, answers = random_documents(T, 8, seed=0), random_documents(T, 8, seed=1)
    blocks = np.random.default_rng(2).random((16, 16)) < 0.25
    question = T // 8

    def sees(i, j):
        if pattern == "full":
            return True
        if pattern == "block-sparse":
            a, b = i * 16 // T, j * 16 // T
            return blocks[a, b] or a == b
        if pattern == "prefix-LM":
            return j <= i or j < T // 4
        if j > i:
            return False
        return {
            "causal": True,
            "window": i - j < T // 16,
            "documents": ids[i] == ids[j],
            "shared question": j < question or answers[i] == answers[j],
        }[pattern]

    return np.array([[bool(sees(i, j)) for j in range(T)] for i in range(T)])


def holders(way):
    """Which tokens each device's queries are, or those of the devices that share heads."""
    t = np.arange(T)
    chunk = lambda parts: t * 2 * parts // T
    zigzag = lambda parts: np.minimum(chunk(parts), 2 * parts - 1 - chunk(parts))
    return {
        "ring contiguous": t * P // T, "ring zigzag": zigzag(P), "ring striped": t % P,
        "ulysses": 0 * t, "usp zigzag": zigzag(P // 2), "all-gather zigzag": zigzag(P),
    }.get(way, 0 * t)  # fmt: skip


@pytest.mark.parametrize("pattern", CONFIG.masks)
def test_pairs_and_balance_are_those_of_brute_force(pattern):
    pairs, mask = allowed(pattern), cp.PATTERNS[pattern](T)
    assert np.array_equal(np.broadcast_to(mask.dense(T, T), (T, T)), pairs)
    assert pairs.any(1).all()
    for name, way in cp.ways(CONFIG).items():
        who = holders(name)
        want = [pairs[who == d].sum() for d in range(who.max() + 1)]
        assert areas(mask, way.places(T), T).tolist() == want


def test_what_is_measured_counts_pairs_and_areas(few, back):
    for config, result in ((FEW, few), (BACK, back)):
        (_, N, _), at = config.settings[0], cp.title(config.settings[0])
        for (pattern, way, where), x in result.cells.items():
            pairs, who = allowed(pattern), holders(way)
            assert where == at and x["pairs"] == x["dense pairs"] == pairs.sum()
            assert x[f"flops {FORWARD}"] == 2 * (H + H) * N * pairs.sum()
            assert x.get(f"flops {BOTH}", 7 * H * 2 * N * pairs.sum()) == 14 * H * N * pairs.sum()
            area = np.array([pairs[who == d].sum() for d in range(who.max() + 1)])
            assert x["imbalance"] == pytest.approx(area.max() / area.mean(), rel=1e-12)
            assert x["devices"] == (P if way in STRATEGIES else 1)


def test_all_agree_with_float64(few, back):
    for result in (few, back):
        errors = [x["error"] for x in result.cells.values()]
        assert 0 < min(errors) and max(errors) < 2e-6


def test_the_reference_is_the_definition():
    q, k, v, d = cp.inputs(replace(CONFIG, width=3), (32, 4, 2))
    mask = np.tril(np.ones((32, 32), bool))

    def output(q, k, v):
        out = np.zeros(d.shape)
        for n in range(4):
            for i in range(32):
                weights = np.exp(k[0, : i + 1, n // 2] @ q[0, i, n] / np.sqrt(3))
                out[0, i, n] = weights @ v[0, : i + 1, n // 2] / weights.sum()
        return out

    args = [x.astype(np.float64) for x in (q, k, v)]
    out, *grads = cp.exact((q, k, v, d), mask)
    np.testing.assert_allclose(out, output(*args), atol=1e-12)
    way = np.random.default_rng(0)
    for n, grad in enumerate(grads):
        step = 1e-5 * way.standard_normal(grad.shape)
        ahead, behind = ([x + s * step if i == n else x for i, x in enumerate(args)]
                         for s in (1, -1))  # fmt: skip
        slope = ((output(*ahead) - output(*behind)) * d).sum() / 2
        assert slope == pytest.approx((grad * step).sum(), rel=1e-6)


def test_an_error_in_any_gradient_is_seen():
    want = np.array([[3.0, -200.0]])
    assert cp.difference(want + [[0, 1]], want) == 1 / 200
    assert cp.difference(jax.numpy.asarray([0.25]), np.array([0.5])) == 0.25
    fn = lambda q, k, v: q * k * v
    both = cp.program(fn, BOTH)(2.0, 3.0, 5.0, 7.0)
    assert [float(x) for x in both] == [30, 7 * 15, 7 * 10, 7 * 6]
    assert len(cp.program(fn, FORWARD)(2.0, 3.0, 5.0, 7.0)) == 1


def test_what_cannot_run_says_why(few, back):
    at = f"{T} 4/2"
    want = {(p, "ulysses", at) for p in FEW.masks}
    want |= {("documents", "jax.nn", at)}
    assert set(few.reasons) == want and not set(few.cells) & want
    assert len(few.cells) + len(want) == len(FEW.masks) * len(FEW.ways)
    for (_, way, _), reason in few.reasons.items():
        told = "N = 4 heads cannot be shared by 8 devices" if way == "ulysses" else "jax.nn names"
        assert told in reason
    assert not back.reasons
    rows = cp.metrics(FEW, few)
    assert {row["refused"] for row in rows.values() if "refused" in row} == {1, 2}
    assert {name for name, row in rows.items() if "refused" in row} == {", ".join(k) for k in want}
    told = cp.notes(few)
    assert "  1  attend: impl" in told and "  2  jax.nn names" in told and "  3  " not in told


def test_lengths_that_cannot_be_laid_out_are_refused():
    config = replace(CONFIG, masks=("causal",), ways=("ring contiguous", "dense"), devices=6)
    result = cp.run(config)
    assert list(result.cells) == [("causal", "dense", f"{T} 4/2")]
    assert "64 tokens for 6 devices, expected a multiple of 6" in str(result.reasons)


def test_bytes_and_hops_are_those_of_the_formulas(few, back):
    keys = T // P * 2 * (H + H) * 4  # of one device: 8 tokens, 2 heads, float32
    hops = {
        "causal": {"ring contiguous": 7, "ring zigzag": 7},
        "window": {"ring contiguous": 1, "ring zigzag": 2},
    }
    for result in (few, back):
        for (pattern, way, _), x in result.cells.items():
            if pattern in hops and way in STRATEGIES:
                assert x["hops"] == hops[pattern].get(way, 0)
                assert x[f"sent {FORWARD}"] == x[f"formula {FORWARD}"]
                if way.startswith("ring"):
                    assert x[f"sent {FORWARD}"] == hops[pattern][way] * keys
            assert (f"formula {FORWARD}" in x) == (pattern in hops and way in STRATEGIES)
    assert few.cells["documents", "all-gather zigzag", f"{T} 4/2"][f"sent {FORWARD}"] == 7 * keys
    assert few.cells["causal", "dense", f"{T} 4/2"][f"sent {FORWARD}"] == 0
    ring = lambda pattern: back.cells[pattern, "ring contiguous", f"{T} 8/2"]
    # keys walk twice, their gradients along and home
    assert ring("causal")[f"sent {BOTH}"] == ring("causal")[f"formula {BOTH}"] == 22 * keys
    assert ring("window")[f"formula {BOTH}"] == 4 * keys
    assert ring("window")[f"sent {BOTH}"] in (3 * keys, 4 * keys)  # the one hop may be shared
    few_hops = replace(CONFIG, masks=("causal",), ways=("usp zigzag",))
    (usp,) = cp.run(few_hops).cells.values()  # 4 x 2: keys of 16 tokens and half the heads walk
    assert usp["hops"] == 3 and usp[f"sent {FORWARD}"] == usp[f"formula {FORWARD}"]
    ulysses = back.cells["causal", "ulysses", f"{T} 8/2"]
    wide = T // P * 8 * H * 4  # q, or the output; keys are repeated to 8 heads
    assert ulysses[f"sent {FORWARD}"] == 7 / 8 * 4 * wide
    assert ulysses[f"sent {BOTH}"] == ulysses[f"formula {BOTH}"] == 7 / 8 * 8 * wide


def judged(config, result):
    return {c.what: c.judge([{}]) for c in cp.claims(config, result)}


def test_claims_hold_of_a_run_and_fail_of_what_is_wrong(few, back):
    clock = "one device: ways that are fastest at some mask and setting"
    window = "window: bytes of the contiguous ring over the least of the others"
    dominant = "strategies that send least at all masks of a setting"
    both, zigzag = f"{BOTH}: bytes counted over those of the formula", "causal, zigzag: imbalance"
    for config, result, without in ((FEW, few, {both, window}), (BACK, back, {zigzag})):
        verdicts = judged(config, result)
        assert len(verdicts) + len(without) == 11 and not without & set(verdicts)
        failed = {what for what, v in verdicts.items() if not v.holds}
        # forward, and without the two that exchange heads, a ring sends least of all
        assert failed - {clock} == ({dominant} if config is FEW else set()), verdicts
    pairs = "FLOPs: pairs counted by tiles, off those of the dense mask"
    for config, result, where, change, failing in (
        (BACK, back, ("causal", "ulysses"), {"error": 2e-5}, "largest error of all"),
        (BACK, back, ("causal", "ulysses"), {"error": np.nan}, "largest error of all"),
        (FEW, few, ("causal", "ring zigzag"), {"imbalance": 1.03}, zigzag),
        (BACK, back, ("causal", "blockwise"), {"pairs": 1.0}, pairs),
        (BACK, back, ("causal", "ulysses"), {f"sent {FORWARD}": 1e6},
         f"{FORWARD}: bytes counted over those of the formula"),
        (BACK, back, ("causal", "ulysses"), {f"sent {BOTH}": 1e6}, both),
        (BACK, back, ("window", "ulysses"), {f"sent {BOTH}": 1.0}, window),
    ):  # fmt: skip
        key = (*where, cp.title(config.settings[0]))
        cells = result.cells | {key: result.cells[key] | change}
        assert not judged(config, replace(result, cells=cells))[failing].holds, failing


def test_a_nan_is_an_error():
    """Python's max would keep the numbers before it, those of the output."""
    config = replace(CONFIG, masks=("causal",), ways=("dense",), modes=(FORWARD, BOTH))
    q, k, v, d = cp.inputs(config, (T, 4, 2))
    d[0, 3, 0, 0] = np.nan
    want = cp.exact((q, k, v, d), allowed("causal"))
    way = cp.ways(config)["dense"]
    lowered = cp.lowered(config, way, "causal", (T, 4, 2), (q, k, v, d))
    found, _ = cp.cell(config, way, "causal", (T, 4, 2), want, *lowered)
    assert np.isnan(found["error"])


def test_a_strategy_that_always_sends_least_dominates(back):
    assert cp.dominators(BACK, back) == []
    key = "window", "ulysses", f"{T} 8/2"
    cells = back.cells | {key: back.cells[key] | {f"sent {BOTH}": 1.0}}
    causal = cp.compared(back, "causal", f"{T} 8/2", f"sent {BOTH}", many=True)
    assert min(causal, key=causal.__getitem__) == "ulysses"
    assert cp.dominators(BACK, replace(back, cells=cells)) == ["ulysses"]


def test_predictions_cover_three_masks_at_each_scale():
    found = cp.predicted()
    assert {mask for _, mask in found} == set(cp.COVERED) and len(found) == 3 * len(cp.SCALES)
    for told in found.values():
        assert not any(p.strategy.startswith("lasp") for p in told) and len(told) == 6
    assert cp.plain("usp 32 x 2 zigzag") == "usp zigzag"
    assert cp.plain("all-gather zigzag") == "all-gather zigzag"
    settings = {mask: cp.attention_of(CONFIG, mask, (T, 4, 2)) for mask in cp.PATTERNS}
    assert {m for m, a in settings.items() if a} == set(cp.COVERED)


def test_files_say_what_was_measured(back, few, tmp_path, monkeypatch, capsys):
    for config, result in ((BACK, back), (FEW, few)):
        config = replace(config, results=tmp_path / config.modes[-1])
        monkeypatch.setattr(cp, "run", lambda _, result=result: result)
        cp.main(config)
        written = {p.name for p in config.results.iterdir()}
        (sizes,) = config.settings
        maps = "maps_{}_{}_{}.png".format(*sizes)
        assert written == {"table.csv", "report.md", "result.json", maps}
        with (config.results / "table.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(result.cells) + len(result.reasons)
        assert sum(bool(row["reason"]) for row in rows) == len(result.reasons)
        for row in rows:
            key = row["mask"], row["way"], row["T N/K"]
            if not row["reason"]:
                assert float(row["error"]) == result.cells[key]["error"]
        report = (config.results / "report.md").read_text()
        assert all(reason in report for reason in result.reasons.values())
        assert "Predicted (f), not measured" in report and "1M tokens" in capsys.readouterr().out
        record = json.loads((config.results / "result.json").read_text())
        strategy, hops = ("ring contiguous", 1) if config.ways == BACK.ways else ("ring zigzag", 2)
        row = record["metrics"][0][f"window, {strategy}, {cp.title(sizes)}"]
        assert row["hops (c)"] == hops and row["ms (m)"] > 0


def test_settings_that_make_no_sense():
    for wrong, told in (
        ({"masks": ("casual",)}, "did you mean causal"),
        ({"ways": ("ring zigzagg",)}, "did you mean ring zigzag"),
        ({"modes": ()}, "modes: got none"),
        ({"devices": 3}, "devices: got 3, expected an even number from 4 on"),
        ({"settings": ()}, "settings: got none"),
        ({"settings": ((64, 4, 3),)}, "settings: got 64 4 3, expected"),
        ({"settings": ((65, 4, 2),)}, "settings: got 65 4 2, expected T a multiple of 32"),
    ):
        with pytest.raises(lab.UserError, match=told):
            replace(cp.Config(), **wrong)
    with pytest.raises(lab.UserError, match="devices: got 64, but JAX has 8"):
        cp.ways(replace(cp.Config(), devices=64))
