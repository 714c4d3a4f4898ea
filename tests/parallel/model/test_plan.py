"""Costs are those of hand arithmetic and brute force; predictions order as papers report."""

import re
from dataclasses import replace

import numpy as np
import pytest
import tyro

from attnjax.core import masks
from attnjax.parallel.model import costs
from attnjax.parallel.model.costs import Attention
from attnjax.parallel.model.planning import (
    Machine,
    Prediction,
    Setting,
    best,
    plan,
    predict,
    rate,
    seconds,
    size,
)


def attention(T, N=32, K=8, **rest):
    return Attention(1, T, T, N, K, 128, 128, **rest)


SMALL = attention(8192)  # on 8 devices: 1024 tokens each, 2**21 elements of keys and values

# ------------------------------------------------------------------------------ bytes, by hand


def test_bytes_of_a_ring():
    cost = costs.ring(SMALL, 8)
    # 7 hops of 1024 tokens x 8 heads x 256 numbers x 2 bytes
    assert cost.forward_bytes == 29_360_128
    # 7 hops again, and 8 hops of gradients of 4 bytes
    assert cost.backward_bytes == 29_360_128 + 67_108_864
    assert (cost.forward_steps, cost.backward_steps) == (7, 8)


def test_bytes_of_a_ring_under_a_window():
    near = replace(SMALL, mask="window", window=1025)  # 1 hop; gradients go along, and home
    cost = costs.ring(near, 8)
    assert cost.forward_bytes == 4_194_304
    assert cost.backward_bytes == 4_194_304 + 2 * 8_388_608
    # zigzag has a chunk's neighbors on both sides: 2 hops each way for 1024 keys before
    cost = costs.ring(near, 8, "zigzag")
    assert cost.forward_bytes == 4 * 4_194_304
    assert cost.backward_bytes == 4 * 4_194_304 + (3 + 3) * 8_388_608


def test_hops_of_gradients():
    assert [costs.gradient_hops(h) for h in (0, 1, 2, 7)] == [0, 2, 3, 8]


def test_bytes_of_ulysses():
    cost = costs.ulysses(SMALL, 8)
    # 7/8 of (4194304 of q + 4194304 of the output + 2097152 of k, v) x 2 bytes
    assert cost.forward_bytes == 18_350_080
    # 7/8 of (4194304 x 2 bytes + 6291456 x 4 bytes)
    assert cost.backward_bytes == 29_360_128
    narrow = costs.ulysses_backward_bytes(SMALL, 8, gradient_bytes=2)
    assert narrow == 18_350_080


def test_ulysses_repeats_heads_that_are_too_few():
    # 16 devices of 512 tokens: 16 heads instead of 8, 15/16 of (2097152 x 2 + 2097152) x 2 bytes
    assert costs.ulysses_forward_bytes(SMALL, 16) == 11_796_480
    assert [costs.ulysses_heads(K, P) for K, P in ((8, 4), (8, 16), (6, 4), (1, 8))] == [
        8,
        16,
        12,
        8,
    ]
    with pytest.raises(ValueError, match="ulysses: N=32 heads for 64 devices, expected a multiple"):
        costs.ulysses(SMALL, 64)


def test_bytes_of_an_all_gather():
    cost = costs.allgather(SMALL, 8)
    assert (cost.forward_bytes, cost.backward_bytes) == (29_360_128, 58_720_256)
    # its own q, k, v, output; then all of k, v: 8192 x 8 x 256 numbers of 2 bytes and of 4
    assert cost.memory == 20_971_520 + 16_777_216 * 6


def test_bytes_of_usp():
    cost = costs.usp(SMALL, R=4, U=2)
    # 1/2 of (4194304 x 2 + 2097152) x 2 bytes, then 3 hops of 2048 tokens x 4 heads x 256 x 2
    assert cost.forward_bytes == 10_485_760 + 12_582_912
    assert cost.backward_bytes == 16_777_216 + 12_582_912 + 4 * 2048 * 4 * 256 * 4
    assert cost.forward_steps == 2 + 3
    # a ring of one device is ulysses, with 8 key heads repeated to 16
    assert costs.usp(SMALL, R=1, U=16).forward_bytes == 11_796_480


@pytest.mark.parametrize("P", [2, 4, 8])
@pytest.mark.parametrize("mask", ["full", "causal", "window"])
def test_usp_has_the_ring_and_ulysses_at_its_ends(P, mask):
    a = replace(SMALL, mask=mask, window=700)
    assert costs.usp(a, P, 1) == costs.ring(a, P)
    assert costs.usp(a, 1, P) == costs.ulysses(a, P)


def test_bytes_of_lasp2():
    a = Attention(1, 2**21, 2**21, 16, 16, 128, 128)
    # 63 states of 16 heads x (128 x 128 + 1) numbers of 4 bytes; backward 63 states
    cost = costs.lasp2(a, 64)
    assert (cost.forward_bytes, cost.backward_bytes) == (66_064_320, 66_060_288)
    assert (cost.forward_steps, cost.backward_steps) == (1, 1)
    zigzag = costs.lasp2(a, 64, runs=2)
    assert (zigzag.forward_bytes, zigzag.backward_bytes) == (132_128_640, 132_120_576)
    per_head = {"none": 16385, "head": 16385, "channel": 16512, "delta": 32768}
    for decay, numbers in per_head.items():
        assert costs.lasp2(a, 64, decay=decay).forward_bytes == 63 * 16 * numbers * 4
    assert costs.lasp(a, 64).forward_bytes == 1_048_576
    assert costs.lasp(a, 64).forward_steps == 63


def test_one_device_sends_nothing():
    for cost in (
        costs.ring(SMALL, 1), costs.ulysses(SMALL, 1), costs.allgather(SMALL, 1),
        costs.usp(SMALL, 1, 1), costs.lasp2(SMALL, 1), costs.lasp(SMALL, 1),
    ):  # fmt: skip
        assert cost.bytes == cost.forward_steps == cost.backward_steps == 0
    for cost in (costs.ring(SMALL, 1), costs.allgather(SMALL, 1), costs.usp(SMALL, 1, 1)):
        assert cost.memory == 8192 * (32 + 8) * 256 * 2


def test_bytes_by_the_number_of_devices():
    devices = [2, 4, 8, 16, 32]
    whole = 8192 * 8 * 256 * 2  # all keys and values
    ring = [costs.ring(SMALL, P).forward_bytes for P in devices]
    assert ring == [whole * (P - 1) / P for P in devices]  # rises, and stays below the whole
    assert [costs.allgather(SMALL, P).forward_bytes for P in devices] == ring
    each_hop = [sent / (P - 1) for sent, P in zip(ring, devices, strict=True)]
    ulysses = [costs.ulysses(SMALL, P).forward_bytes for P in devices]
    for falls in (each_hop, ulysses[1:], [costs.ring(SMALL, P).memory for P in devices]):
        assert all(x > y for x, y in zip(falls, falls[1:], strict=False))
    for rises in ([costs.lasp2(SMALL, P).bytes for P in devices], ring):
        assert all(x < y for x, y in zip(rises, rises[1:], strict=False))


def test_bytes_by_the_length():
    for cost in (costs.ring, costs.allgather, costs.ulysses):
        assert cost(attention(2**20), 8).bytes == 128 * cost(SMALL, 8).bytes
    assert costs.lasp2(attention(2**20), 8).bytes == costs.lasp2(SMALL, 8).bytes


# ------------------------------------------------------------------------- work, by brute force


def pairs(T, mask, window):
    """What the mask allows, where cells on an edge of the band are half inside."""
    gap = np.arange(T)[:, None] - np.arange(T)[None]
    if mask == "full":
        return np.ones((T, T))
    limit = window if mask == "window" else 2 * T
    return ((gap >= 0) & (gap <= limit)) * np.where((gap == 0) | (gap == limit), 0.5, 1.0)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize(
    ("mask", "window"),
    [("full", 1), ("causal", 1), *(("window", W) for W in (1, 3, 8, 20, 60, 96, 500))],
)
@pytest.mark.parametrize("P", [1, 3, 4, 8])
def test_areas_are_those_of_counted_pairs(P, mask, window, layout):
    T = 96
    a = Attention(1, T, T, 4, 2, 8, 8, mask=mask, window=window)
    counted = pairs(T, mask, min(window, T)).sum(1)
    t = T // P
    if layout == "contiguous":
        held = [np.arange(d * t, (d + 1) * t) for d in range(P)]
    else:
        chunks = np.arange(T).reshape(2 * P, t // 2)
        held = [np.concatenate([chunks[d], chunks[2 * P - 1 - d]]) for d in range(P)]
    assert costs.area(a) == counted.sum()
    assert costs.busiest_area(a, P, layout) == pytest.approx(max(counted[i].sum() for i in held))


@pytest.mark.parametrize("P", [2, 5, 64])
def test_imbalance_of_a_causal_mask(P):
    a = attention(640)
    assert costs.busiest_area(a, P) / (costs.area(a) / P) == pytest.approx((2 * P - 1) / P)
    assert costs.busiest_area(a, P, "zigzag") / (costs.area(a) / P) == pytest.approx(1)


def test_flops():
    a = attention(1024)
    # 4 x 32 heads x 128 x half of 1024 squared
    assert costs.ulysses(a, 8).forward_flops == 4 * 32 * 128 * 524_288 / 8
    assert costs.ring(a, 8, "zigzag").forward_flops == 1_073_741_824
    assert costs.usp(a, 4, 2, "zigzag").forward_flops == 1_073_741_824
    assert costs.ring(a, 8).forward_flops == 1_073_741_824 * 15 / 8
    assert costs.ring(a, 8).backward_flops == 2.5 * 1_073_741_824 * 15 / 8
    wide = replace(a, D=384, mask="full")  # 2 x (128 + 384), and all of the square
    assert costs.allgather(wide, 8).forward_flops == 4 * 1_073_741_824
    assert costs.lasp2(a, 8).forward_flops == 4 * 1024 * 32 * 128 * 128 / 8


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
@pytest.mark.parametrize("window", [1, 2, 7, 8, 12, 13, 14, 19, 20, 25, 26, 95, 96, 200])
@pytest.mark.parametrize("P", [1, 2, 3, 4, 8])
def test_walks_reach_every_key_of_the_window(P, window, layout):
    T = 96
    a = Attention(1, T, T, 4, 2, 8, 8, mask="window", window=window)
    at, chunk = np.arange(T), np.arange(T) // (T // P // 2)
    q, k = np.nonzero(masks.window(window - 1).allowed(at[:, None], at[None]))
    holder = chunk // 2 if layout == "contiguous" else np.minimum(chunk, 2 * P - 1 - chunk)
    needed = set((holder[q] - holder[k]) % P)
    covers = lambda ahead, behind: needed <= {n % P for n in range(-behind, ahead + 1)}
    ahead, behind = costs.ring_walks(a, P, layout)
    assert covers(ahead, behind)
    fewest = min(m + n for m in range(P) for n in range(P) if covers(m, n))
    assert costs.ring_hops(a, P, layout) == ahead + behind == fewest
    # equally many in one direction are better: gradients come home from one side alone
    assert not behind or ahead + behind < P - 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"N": 12}, "N=12, K=8: expected N to be a multiple of K"),
        ({"S": 64}, "mask 'causal': T=8192, S=64, expected T = S"),
        ({"mask": "prefix"}, "mask is 'prefix', expected one of 'full', 'causal', 'window'"),
        ({"B": 0}, "B is 0, expected at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        replace(SMALL, **change)


def test_a_cut_that_is_not_even_is_refused():
    with pytest.raises(ValueError, match="T=8192 for 3 devices, expected a multiple"):
        costs.busiest_area(SMALL, 3)
    with pytest.raises(ValueError, match="S=8192 for 3 devices"):
        costs.ring(SMALL, 3)
    with pytest.raises(ValueError, match="T=24 for 16 devices"):
        costs.busiest_area(attention(24), 8, "zigzag")
    for of in (costs.busiest_area, costs.ring_walks):
        with pytest.raises(ValueError, match="layout is 'striped', expected 'contiguous' or 'zig"):
            of(SMALL, 8, "striped")


# -------------------------------------------------------------------------------- predictions

NODE = Machine(8, flops=400e12, link=400e9)
FAR = Machine(64, flops=400e12, link=400e9, inter_link=25e9)  # 8 nodes of 8


def named(predictions):
    """By the first words, as usp goes on to tell its split."""
    return {"usp" if p.strategy.startswith("usp") else p.strategy: p for p in predictions}


def times(a, machine, **rest):
    return {name: p.time for name, p in named(predict(a, machine, **rest)).items()}


def test_one_time_by_hand():
    machine = Machine(8, flops=1e12, link=1e9, latency=1e-3)
    a = attention(8192, mask="full")
    row = named(predict(a, machine))
    flops = 4 * 32 * 128 * 8192 * 1024  # of each device, forward
    assert row["ulysses"].compute == pytest.approx(3.5 * flops / 1e12)
    assert row["ulysses"].communication == pytest.approx(4e-3 + (18_350_080 + 29_360_128) / 1e9)
    assert row["all-gather contiguous"].communication == pytest.approx(2e-3 + 88_080_384 / 1e9)
    for name in ("ulysses", "all-gather contiguous"):
        assert row[name].time == pytest.approx(row[name].compute + row[name].communication)
    # 17.2 ms of work each of 8 steps forward hide 5.2 ms of sending; 42.9 ms hide 13.6 ms backward,
    # but the gradients' last hop home, of 8.4 MB, hides behind nothing
    home = 1e-3 + 8_388_608 / 1e9
    ring = row["ring contiguous"]
    assert ring.time == pytest.approx(3.5 * flops / 1e12 + home)
    slow = named(predict(a, replace(machine, link=1e8)))["ring contiguous"]
    there, back = 1e-3 + 4_194_304 / 1e8, 1e-3 + 12_582_912 / 1e8
    step = flops / 8 / 1e12
    expected = 7 * there + step + 7 * back + 2.5 * step + 1e-3 + 8_388_608 / 1e8
    assert slow.time == pytest.approx(expected)
    assert slow.communication == pytest.approx(expected - 3.5 * step)


def test_links_between_nodes_are_slower():
    assert (FAR.ring_rate(8), FAR.ring_rate(16), NODE.ring_rate(8)) == (400e9, 25e9, 400e9)
    # of 63 others 56 are outside: 8/9 of the bytes cross, and the rest is done by then
    assert FAR.all_to_all_time(9e9, 64) == pytest.approx(1e-5 + 8e9 / 25e9)
    assert FAR.all_to_all_time(8e9, 8) == pytest.approx(1e-5 + 8e9 / 400e9)
    even = replace(FAR, inter_link=400e9)
    assert even.all_to_all_time(9e9, 64) == pytest.approx(1e-5 + 8e9 / 400e9)
    assert even.gather_time(0, 1) == even.all_to_all_time(0, 1) == 0


# LASP-2, arXiv 2502.07563: 2048K tokens, 64 devices


def test_lasp2_beats_states_in_turn_and_a_ring_of_keys():
    a = Attention(1, 2**21, 2**21, 16, 16, 128, 128)
    for machine in (Machine(64, 400e12, 200e9), replace(FAR, latency=2e-5)):
        found = times(a, machine, kind="linear")
        assert found["lasp2 contiguous"] < found["lasp"]
        assert found["lasp2 contiguous"] < found["ring zigzag"] / 20
        row = named(predict(a, machine, kind="linear"))
        assert row["lasp2 contiguous"].communication < row["ring contiguous"].communication / 20
        assert best(list(row.values())).strategy == "lasp2 contiguous"


def test_states_in_turn_wait_for_latency():
    a = Attention(1, 2**21, 2**21, 16, 16, 128, 128)
    near, late = (
        named(predict(a, Machine(64, 400e12, 200e9, latency=s), kind="linear")) for s in (0, 1e-4)
    )
    more = lambda name: late[name].time - near[name].time
    assert more("lasp2 contiguous") == pytest.approx(2 * 1e-4)  # one collective each way
    assert more("lasp") == pytest.approx(2 * 63 * 1e-4)
    # without latency the bytes remain: 63 states each way, in turn or at once
    state = 16 * 128 * 128 * 4 / 200e9
    assert near["lasp"].communication == pytest.approx(126 * state)
    assert near["lasp2 contiguous"].communication == pytest.approx(126 * state, rel=1e-4)


def test_ulysses_computes_linear_attention_as_one_device_does():
    found = named(predict(attention(2**20), NODE, kind="linear"))
    flops = 4 * 2**20 * 32 * 128 * 128 / 8
    assert found["ulysses"].compute == pytest.approx(3.5 * flops / 400e12)
    assert found["lasp2 contiguous"].compute == found["ulysses"].compute
    assert found["ring contiguous"].note and not found["ulysses"].note


def test_lasp2_does_not_grow_with_the_length():
    each = [
        named(predict(attention(T), NODE, kind="linear"))["lasp2 contiguous"]
        for T in (2**14, 2**21)
    ]
    assert each[0].bytes == each[1].bytes and each[0].communication == each[1].communication
    assert each[0].compute * 128 == pytest.approx(each[1].compute)


# Long-context attention benchmark: no strategy dominates


def test_ulysses_wins_with_many_heads_inside_a_node():
    found = predict(attention(2**14, N=32, K=32), NODE)
    assert best(found).strategy == "ulysses"


def test_a_zigzag_ring_wins_with_few_heads_and_long_sequences():
    found = predict(attention(2**19, N=8, K=8), Machine(64, 400e12, 400e9))
    assert best(found).strategy == "ring zigzag"
    row = named(found)
    assert row["ulysses"].reason == "N=8 heads for 64 devices, expected a multiple of 64"
    # all but the way home is hidden
    assert row["ring zigzag"].time < 1.01 * row["ring zigzag"].compute
    assert row["ring zigzag"].communication > 0.2 * row["ring zigzag"].compute


def test_zigzag_halves_a_causal_ring_that_computes():
    found = times(attention(2**20), Machine(64, 400e12, 400e9))
    assert found["ring contiguous"] / found["ring zigzag"] == pytest.approx(127 / 64, rel=0.01)
    full = times(attention(2**20, mask="full"), Machine(64, 400e12, 400e9))
    assert full["ring contiguous"] == pytest.approx(full["ring zigzag"])
    # where messages take longer than work, the layout matters little
    bound = times(attention(2**15), replace(FAR, link=25e9))
    assert bound["ring contiguous"] < 1.1 * bound["ring zigzag"]


def test_a_window_makes_the_contiguous_ring_win():
    a = attention(2**20, mask="window")
    found = times(a, Machine(64, 400e12, 400e9))
    fastest = best(predict(a, Machine(64, 400e12, 400e9)))
    assert fastest.strategy == "ring contiguous"
    assert found["ring contiguous"] < found["all-gather contiguous"] / 3
    assert found["ring contiguous"] < found["ring zigzag"]


def test_usp_is_between_across_nodes_or_best():
    between = times(attention(2**16, N=64, K=64), FAR)  # repeated heads do not save bytes
    assert between["ulysses"] < between["usp"] < between["ring zigzag"]
    found = predict(attention(2**16, N=64, K=8), FAR)
    assert best(found).strategy == "usp 8 x 8 zigzag"  # heads in the node, ring across
    # few heads for many devices, where the ring cannot hide
    few = times(attention(2**16, N=32, K=8), FAR)
    assert few["ulysses"] == np.inf and few["usp"] < few["ring zigzag"] / 2


def test_no_strategy_dominates():
    far, near = FAR, Machine(64, 400e12, 400e9)
    settings = [
        (attention(2**14, N=32, K=32), NODE),
        (attention(2**19, N=8, K=8), near),
        (attention(2**20, mask="window"), near),
        (attention(2**16, N=64, K=8), far),
    ]
    winners = [best(predict(*each)).strategy for each in settings]
    assert winners == ["ulysses", "ring zigzag", "ring contiguous", "usp 8 x 8 zigzag"]


def test_what_cannot_run_is_listed_with_its_reason():
    row = named(predict(attention(8192, N=3, K=1), Machine(8, 1e12, 1e9)))
    assert set(row) == {
        "ring contiguous", "ring zigzag", "ulysses", "usp", "all-gather contiguous",
        "all-gather zigzag", "lasp2 contiguous", "lasp2 zigzag",
    }  # fmt: skip
    assert row["usp"].reason == "N=3 heads cannot be shared by any of [2, 4] devices"
    assert "linear attention only" in row["lasp2 zigzag"].reason
    prime = named(predict(attention(7 * 128), Machine(7, 1e12, 1e9)))
    assert prime["usp"].reason == "7 devices have no split R x U with both above 1"
    odd = named(predict(attention(8 * 3), Machine(8, 1e12, 1e9)))
    assert odd["ring zigzag"].reason and odd["ring contiguous"].reason is None
    assert odd["usp"].reason is None
    # 3 heads share out by U = 3 alone, and 9 tokens for each of R = 2 are no zigzag
    odd = named(predict(attention(18, N=3, K=1), Machine(6, 1e12, 1e9)))
    assert odd["usp"].strategy == "usp 2 x 3 contiguous"
    uneven = predict(attention(1001), NODE)
    assert all(p.reason for p in uneven) and best(uneven) is None
    windowed = named(predict(attention(8192, mask="window"), NODE, kind="linear"))
    assert "linear attention has none" in windowed["lasp2 contiguous"].reason


def test_best_leaves_out_what_does_not_run():
    able, comparison = Prediction("ring", time=2.0), Prediction("lasp", time=1.0)
    assert best([Prediction("ulysses", time=0.0, reason="heads"), able, comparison]) is able


# ------------------------------------------------------------------------------ command line


def test_suffixes():
    assert [size(s) for s in ("4096", "128k", "1M", "1.5k", "1G")] == [
        4096, 131072, 2**20, 1536, 2**30,
    ]  # fmt: skip
    assert [rate(s) for s in ("400T", "200G", "1.5k", "7")] == [4e14, 2e11, 1500, 7]
    assert [seconds(s) for s in ("10us", "1.5ms", "2s", "5ns")] == pytest.approx(
        [1e-5, 1.5e-3, 2, 5e-9]
    )
    for read, wrong in (
        (size, "1MB"),
        (size, "1.3"),
        (rate, "fast"),
        (seconds, "10"),
        (size, "-1"),
    ):
        with pytest.raises(ValueError, match=f"'{wrong}'"):
            read(wrong)


def run(capsys, *args):
    tyro.extras.subcommand_cli_from_dict(
        {"plan": plan, "other": lambda: None}, args=["plan", *args]
    )
    return capsys.readouterr().out


def test_plan_prints_every_strategy_and_the_best(capsys):
    out = run(capsys)
    assert "Predicted from these numbers, not measured" in out and "1 x 1M tokens" in out
    for p in predict(*Setting().parts()):
        line = next(line for line in out.splitlines() if f" {p.strategy} " in line)
        assert ("cannot run" in line) == (p.reason is not None)
        assert p.reason is None or f"{p.strategy} cannot run: {p.reason}" in out
    assert "ulysses cannot run: N=32 heads for 64 devices" in out
    assert out.splitlines()[-1].startswith("best (predicted): ring zigzag, 1.2")


def test_plan_takes_every_number(capsys):
    given = {
        "context": "128k", "devices": "16", "heads": "16", "kv-heads": "4", "head-width": "64",
        "batch": "2", "mask": "window", "window": "2k", "flops": "100T", "link": "50G",
        "inter-link": "5G", "devices-per-node": "4", "latency": "1ms", "element-bytes": "4",
    }  # fmt: skip
    out = run(capsys, *(text for key, value in given.items() for text in (f"--{key}", value)))
    for part in (
        "softmax attention, window 2k, 2 x 128k tokens, 16 heads over 4, width 64",
        "16 devices of 100TFLOP/s, 50GB/s, 5GB/s between nodes of 4, latency 1ms",
    ):
        assert part in out
    a = Attention(2, 2**17, 2**17, 16, 4, 64, 64, 4, mask="window", window=2048)
    fastest = best(predict(a, Machine(16, 1e14, 5e10, 5e9, 4, 1e-3)))
    assert f"best (predicted): {fastest.strategy}, " in out


def test_plan_of_linear_attention(capsys):
    out = run(capsys, "--attention", "linear", "--decay", "delta", "--context", "2M")
    assert "best (predicted): lasp2 contiguous" in out
    assert "computes all pairs" in out and "for comparison, not here" in out


def test_plan_where_nothing_runs(capsys):
    assert run(capsys, "--context", "1001").splitlines()[-1] == "best (predicted): none can run"


@pytest.mark.parametrize(
    ("change", "told"),
    [({"link": 0}, "link is 0"), ({"devices": -1}, "devices is -1"), ({"latency": -1}, "latency")],
)
def test_machines_that_cannot_be_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        replace(NODE, **change)
