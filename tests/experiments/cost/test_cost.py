"""What is timed side by side computes the same, and what is calculated from times."""

from dataclasses import replace

import numpy as np
import pytest

from attnjax import lab
from attnjax.lab import timing
from experiments.cost import linear_cost, softmax_cost, window_cost


def outputs(monkeypatch, module, config, names, T):
    """What each of the names computes, as it would be timed."""
    caught = []
    monkeypatch.setattr(timing, "timed", lambda fn, args, mode: caught.append(fn(*args)))
    for name in names:
        module.timed(config, name, T, timing.FORWARD)
    return caught


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (softmax_cost, ["blockwise", "dense", "jax.nn"]),
        (window_cost, ["window", "window, jax.nn"]),
        (linear_cost, ["linear", "chunked", "recurrent"]),
    ],
)
def test_rivals_compute_the_same(module, names, monkeypatch):
    config = replace(module.QUICK, heads=2, width=4)
    first, *others = outputs(monkeypatch, module, config, names, 40)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)


def test_variants_of_the_catalogue_are_timed_by_name(monkeypatch):
    config = replace(softmax_cost.QUICK, variants=("cog_attention",), heads=2, width=4)
    assert "cog_attention fwd+bwd" in softmax_cost.STUDY.run.names(config)
    (out,) = outputs(monkeypatch, softmax_cost, config, ["cog_attention"], 8)
    assert out.shape == (1, 8, 2, 4)
    with pytest.raises(lab.UserError, match="variants: got 'cog_atention', did you mean cog"):
        replace(config, variants=("cog_atention",))


def test_the_share_is_of_useful_operations():
    c = replace(softmax_cost.Config(), lengths=(1024, 8192), variants=())
    seconds = {"blockwise fwd+bwd": {8192: 1.5}, "product": {8192: 0.04}}
    useful = 14 * 64 * 8 * 8192 * 8193 / 2
    found = softmax_cost.growth(c, seconds)["blockwise fwd+bwd"]["share"]
    assert found == pytest.approx(useful / 1.5 / (2 * 2048**3 / 0.04))


def test_a_token_is_timed_and_the_crossover_found():
    c = replace(linear_cost.Config(), lengths=(1000, 2000, 8000), others_up_to=2000)
    seconds = {
        "linear fwd": {T: 1.5e-6 * T for T in c.lengths},
        "softmax fwd": {T: 1e-9 * T**2 for T in (1000, 2000)},
    }
    found = linear_cost.growth(c, seconds)["linear fwd"]
    assert found["us a token, T=8000"] == pytest.approx(1.5)
    assert found["crossover"] == pytest.approx(1500)


def test_both_modes_of_a_rival_run():
    pytest.importorskip("torch")
    for mode in (timing.FORWARD, timing.BOTH):
        softmax_cost.timed_torch(replace(softmax_cost.QUICK, heads=2, width=4), 8, mode)()


def test_settings_that_say_nothing_are_refused():
    for module in (softmax_cost, window_cost, linear_cost):
        with pytest.raises(lab.UserError, match=r"lengths: got \(64,\), expected .* at least"):
            replace(module.QUICK, lengths=(64,))
    with pytest.raises(lab.UserError, match="others_up_to: got 64, expected two lengths"):
        replace(linear_cost.QUICK, others_up_to=64)
