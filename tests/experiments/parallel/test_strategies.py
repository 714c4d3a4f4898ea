"""The comparison of strategies: its counts beside brute force, its refusals, and its files."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from attnjax import lab
from attnjax.lab.timing import BOTH, FORWARD
from attnjax.parallel.model.balance import areas, random_documents
from experiments.parallel import strategies
from experiments.parallel.strategies import PATTERNS, STUDY, WAYS, row_of

pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")

T, P, H = 64, 8, 8
CONFIG = replace(strategies.Config(), settings=((T, 4, 2),), modes=(FORWARD,), width=H, rounds=1)
FEW = replace(  # 4 heads cannot be shared by 8 devices, 8 can
    CONFIG, masks=("causal", "documents"),
    ways=("dense", "jax.nn", "ring zigzag", "ulysses", "all-gather zigzag"),
)  # fmt: skip
BACK = replace(
    CONFIG, masks=("causal", "window"), ways=("blockwise", "ring contiguous", "ulysses"),
    settings=((T, 8, 2),), modes=(FORWARD, BOTH),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("few")


@pytest.fixture(scope="module")
def few(folder):
    """Forward, with heads too few for Ulysses."""
    return STUDY.run(FEW, "key", lab.Place(folder))


@pytest.fixture(scope="module")
def back(tmp_path_factory):
    """Forward and backward, with heads enough."""
    return STUDY.run(BACK, "key", lab.Place(tmp_path_factory.mktemp("back")))


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
        "usp zigzag": zigzag(P // 2), "all-gather zigzag": zigzag(P),
    }.get(way, 0 * t)  # fmt: skip


@pytest.mark.parametrize("pattern", CONFIG.masks)
def test_masks_and_balance_are_those_of_brute_force(pattern):
    pairs, mask = allowed(pattern), PATTERNS[pattern](T)
    assert np.array_equal(np.broadcast_to(mask.dense(T, T), (T, T)), pairs)
    assert pairs.any(1).all()
    for name, way in WAYS.items():
        who = holders(name)
        want = [pairs[who == d].sum() for d in range(who.max() + 1)]
        assert areas(mask, way.places(P, T), T).tolist() == want


def test_what_runs_has_every_number_and_what_does_not_says_why(few, back, folder):
    for config, result in ((FEW, few), (BACK, back)):
        names = STUDY.run.names(config)
        assert {row: list(x) for row, x in result.seeds[0].items()} == names
    refused = {row for row, x in few.seeds[0].items() if np.isnan(x["imbalance"])}
    (sizes,) = FEW.settings
    want = {row_of(p, sizes, "ulysses") for p in FEW.masks} | {row_of("documents", sizes, "jax.nn")}
    assert refused == want
    told = (folder / "refused.txt").read_text().splitlines()
    assert len(told) == 3 and all(any(line.startswith(row) for line in told) for row in want)
    assert any("N = 4 heads cannot be shared by 8 devices" in line for line in told)
    assert any("jax.nn names" in line for line in told)
    assert not any(np.isnan(list(x.values())).any() for x in back.seeds[0].values())
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(few.seeds[0])
    assert sum(row["imbalance"] == "nan" for row in rows) == 3


def test_pairs_and_bytes_are_counted(few, back):
    (_, N, _), found = BACK.settings[0], back.seeds[0]
    at = lambda pattern, way: found[row_of(pattern, BACK.settings[0], way)]
    for pattern in BACK.masks:
        flops = 4 * H * N * allowed(pattern).sum()
        x = at(pattern, "blockwise")
        assert x["GFLOP/s fwd"] * x["ms fwd"] * 1e6 == pytest.approx(flops)
        assert x["GFLOP/s fwd+bwd"] * x["ms fwd+bwd"] * 1e6 == pytest.approx(3.5 * flops)
    keys = T // P * 2 * (H + H) * 4 / 1e3  # kB of one device: 8 tokens, 2 heads, float32
    ring = at("causal", "ring contiguous")
    assert ring["hops"] == 7 and ring["sent kB fwd"] == pytest.approx(7 * keys)
    assert ring["sent kB fwd+bwd"] == pytest.approx(22 * keys)  # gradients go along, and home
    assert at("window", "ring contiguous")["hops"] == 1
    assert at("causal", "ulysses")["hops"] == 0
    wide = T // P * 8 * H * 4 / 1e3  # q, or the output; keys are repeated to 8 heads
    assert at("causal", "ulysses")["sent kB fwd"] == pytest.approx(7 / 8 * 4 * wide)
    gathered = few.seeds[0][row_of("documents", FEW.settings[0], "all-gather zigzag")]
    assert gathered["sent kB fwd"] == pytest.approx(7 * keys)


def test_cells_that_were_measured_are_not_measured_again(few, folder, monkeypatch):
    monkeypatch.setattr(strategies, "counted", lambda *args: pytest.fail("measured again"))
    again = STUDY.run(FEW, "key", lab.Place(folder))
    np.testing.assert_equal(again.seeds, few.seeds)


def test_claims_are_on_what_is_there(back):
    told = {claim.says: claim.judge(back.seeds) for claim in STUDY.claims(BACK)}
    assert list(told) == [
        "T N/K = 64 8/2, window: ring contiguous sends least of all strategies",
        "T N/K = 64 8/2, causal: ulysses sends least of all strategies",
    ]
    assert not [claim for claim in STUDY.claims(FEW) if "sends least" in claim.says]
    assert len(STUDY.claims(strategies.Config())) == 3
    figures = STUDY.figures(BACK, back)
    assert list(figures) == ["maps-64-8-2"]


def test_lengths_that_cannot_be_laid_out_are_refused(tmp_path):
    config = replace(CONFIG, masks=("causal",), ways=("ring contiguous", "dense"), devices=6)
    (found,) = STUDY.run(config, "key", lab.Place(tmp_path)).seeds
    assert [np.isnan(x["hops"]) for x in found.values()] == [True, False]
    assert (
        "64 tokens for 6 devices, expected a multiple of 6"
        in (tmp_path / "refused.txt").read_text()
    )


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
            replace(strategies.Config(), **wrong)
    with pytest.raises(lab.UserError, match="devices: got 64, but JAX has 8"):
        WAYS["ulysses"].mesh(64)
