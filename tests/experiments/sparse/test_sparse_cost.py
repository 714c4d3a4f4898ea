"""What sparse_cost times is what it says, and its shares are those of the selections."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from attnjax import lab
from attnjax.lab import timing
from experiments.sparse import sparse_cost

CONFIG = replace(sparse_cost.Config(), heads=4, width=8, methods=("moba 128", "nsa"))
TIMES = lab.Timing(sparse_cost.cells, sparse_cost.growth, sparse_cost.memory)


@pytest.mark.parametrize(("name", "T"), [("moba 128", 1024), ("nsa", 1600), ("seer", 512)])
def test_the_share_is_that_of_what_is_selected(name, T):
    method = sparse_cost.METHODS[name]
    q, k, _ = sparse_cost.inputs(CONFIG, T, method.group)
    chosen = jax.jit(method.select, static_argnums=2)(q, k, method.top_k(T))
    U, X = chosen.indices.shape[1:3]
    last = np.minimum((np.arange(U) + 1) * method.block_q, T) - 1
    visible = X * (last // method.block_k + 1).sum()
    assert method.share(T) == pytest.approx(chosen.valid.sum() / visible)
    assert 0.2 < method.share(T) < 0.35


def test_the_whole_op_is_its_selector_and_attention(monkeypatch):
    caught = []
    monkeypatch.setattr(timing, "timed", lambda fn, args, mode="fwd": caught.append(fn(*args)))
    for part in ("whole", "attend", "select"):
        sparse_cost.timed(CONFIG, "moba 128", part, 2048, timing.FORWARD)
    whole, attended, selected = caught
    np.testing.assert_allclose(attended, whole, atol=1e-5)
    assert selected.shape[-1] == 2  # an eighth of 16 blocks


def test_ratios_are_to_the_rival_with_as_many_key_heads():
    c = replace(CONFIG, lengths=(4096, 8192, 16384))
    seconds, besides = TIMES.null(c)
    seconds["dense fwd"] = {4096: 1.0, 8192: 4.0, 16384: 16.0}
    seconds["dense, groups of 4 fwd"] = {4096: 0.5, 8192: 2.0, 16384: 8.0}
    seconds["moba 128 whole fwd"] = {4096: 1.5, 8192: 2.0, 16384: 3.2}
    seconds["nsa whole fwd"] = {4096: 1.0, 8192: 2.5, 16384: 4.0}
    seconds["nsa attend fwd"] = {4096: 0.5, 8192: 0.8, 16384: 2.2}
    seeds = [TIMES.metrics(c, seconds, besides)] * 3
    assert 4096 < seeds[0]["moba 128 whole fwd"]["crossover"] < 8192
    share = sparse_cost.METHODS["nsa"].share(8192)
    assert seeds[0]["nsa attend fwd"]["over ideal, T=8192"] == pytest.approx(0.4 / share)
    verdicts = [claim.judge(seeds) for claim in sparse_cost.claims(c)]
    told = {v.claim.says: (round(v.values[0], 3), v.word) for v in verdicts}
    assert told["moba 128 whole fwd: faster than dense from T=8192 on"] == (2.0, "holds")
    assert told["nsa whole fwd: faster than dense from T=8192 on"] == (0.8, "fails")
    ideal = "nsa, T=16384: attention takes its share of dense attention's time"
    assert told[ideal] == (0.275, "holds")


def test_methods_are_left_out_where_an_eighth_is_no_block():
    c = replace(CONFIG, methods=("moba 512", "seer"), lengths=(2048, 4096), memory_length=2048)
    names = TIMES.names(c)
    assert "T=2048" not in names["moba 512 whole fwd"] and "T=2048" in names["seer whole fwd"]
    assert not any("moba 512" in row and "peak MB" in names[row] for row in names)
    short = replace(c, lengths=(1024, 2048))
    assert not any("moba 512" in claim.says for claim in sparse_cost.claims(short))


def test_settings_that_cannot_be_are_refused():
    for wrong, told in (
        ({"methods": ("mobba 128",)}, "did you mean moba 128"),
        ({"heads": 6}, "heads: got 6, expected a multiple of 4"),
        ({"lengths": (1024,)}, "lengths: got .*, expected two at least"),
    ):
        with pytest.raises(lab.UserError, match=told):
            replace(sparse_cost.Config(), **wrong)
