"""The benchmark's arithmetic, and that what it times computes what it says."""

import json
from dataclasses import replace

import numpy as np
import pytest

from attnjax import lab
from experiments import cost_curves as cc

TINY = replace(
    cc.QUICK, lengths=(8, 16), window_lengths=(16, 32), window=3, heads=2, width=4, rounds=1,
    linear_lengths=(8, 16), variants=("cog_attention",),
)  # fmt: skip


def test_all_subjects_of_one_kind_compute_the_same():
    for found in (cc.subjects(replace(TINY, variants=())), cc.window_subjects(TINY),
                  cc.linear_subjects(TINY)):  # fmt: skip
        results = []
        for subject in found:
            fn, args = subject.make(16)
            results.append(fn(*args))
        for other in results[1:]:
            np.testing.assert_allclose(other, results[0], atol=1e-5)


def test_claims_compare_what_was_measured():
    config = replace(cc.Config(), memory_length=32768)
    seconds = {
        ("blockwise", cc.FORWARD): {8192: 0.3}, ("jax.nn", cc.FORWARD): {8192: 2.4},
        ("blockwise", cc.BOTH): {8192: 1.0}, ("jax.nn", cc.BOTH): {8192: 8.0},
        ("window", cc.FORWARD): {8192: 0.1, 16384: 0.21},
        ("window", cc.BOTH): {8192: 0.2, 16384: 0.5},
        ("window jax.nn", cc.FORWARD): {8192: 3.0},
        ("linear", cc.FORWARD): {4096: 0.05, 8192: 0.1, 65536: 1.0},
        ("linear", cc.BOTH): {4096: 0.2, 8192: 0.4, 65536: 4.8},
        ("linear chunked", cc.FORWARD): {8192: 0.125},
        ("linear recurrent", cc.FORWARD): {8192: 0.1},
        ("linear recurrent", cc.BOTH): {8192: 8.0},
    }  # fmt: skip
    rates = {(mode, T): 4e11 for mode in (cc.FORWARD, cc.BOTH) for T in (8192, 16384)}
    result = cc.Result(seconds, rates, {
        "blockwise": 1_400_000_000, "linear x 1": 600_000_000, "linear x 2": 1_200_000_000,
    })  # fmt: skip
    metrics = cc.metrics(config, result)
    verdicts = {c.what: c.judge([metrics]) for c in cc.claims(config, result)}
    held = {what: (round(v.mean, 3), v.holds) for what, v in verdicts.items()}
    useful = 4 * 64 * 8 * 8192 * 8193 / 2
    assert held == {
        "blockwise fwd at T=8192: times as fast as jax.nn": (8.0, True),
        "blockwise fwd+bwd at T=8192: times as fast as jax.nn": (8.0, False),
        "blockwise fwd at T=8192: share of product rate": (round(useful / 0.3 / 4e11, 3), False),
        "blockwise fwd+bwd at T=8192: share of product rate": (
            round(3.5 * useful / 1.0 / 4e11, 3), True
        ),
        "window fwd at T=8192: times as fast as window jax.nn": (30.0, True),
        "window fwd: time at T=16384 over T=8192": (2.1, True),
        "window fwd+bwd: time at T=16384 over T=8192": (2.5, False),
        "linear fwd at T=8192: times as fast as linear recurrent": (1.0, True),
        "linear chunked fwd at T=8192: times as fast as linear recurrent": (0.8, False),
        "linear fwd+bwd at T=8192: times as fast as linear recurrent": (20.0, True),
        "linear fwd: time of a token at T=65536 over that at T=4096": (1.25, True),
        "linear fwd+bwd: time of a token at T=65536 over that at T=4096": (1.5, False),
        "linear fwd+bwd: peak memory at T=65536 over half of it": (2.0, True),
        "linear fwd+bwd at T=65536: peak over that of T x H x D states": (
            round(1.2e9 / (65536 * 4 * 64 * 64 * 4), 3), True
        ),
        "blockwise fwd+bwd at T=32768, N=4: peak MB": (1400.0, True),
    }  # fmt: skip


def test_a_tiny_run_writes_table_and_plot(tmp_path):
    cc.main(replace(TINY, results=tmp_path))
    [metrics] = json.loads((tmp_path / "result.json").read_text())["metrics"]
    for name in ("blockwise fwd", "cog_attention fwd+bwd", "jax.nn fwd", "linear fwd+bwd"):
        assert metrics[name]["T=8"] > 0 and metrics[name]["T=16"] > 0
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_variants_and_lengths_are_refused():
    with pytest.raises(lab.UserError, match="variants: got 'cog_atention', did you mean cog"):
        cc.subjects(replace(TINY, variants=("cog_atention",)))
    with pytest.raises(lab.UserError, match="lengths: got \\(0,\\), expected lengths above 0"):
        replace(TINY, lengths=(0,))
