"""kernels.bench on a CPU: counts, checks and reports are right, every case is ready to run."""

import functools
import json
import math
import os
import subprocess
import sys
import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import lab
from attnjax.kernels import bench, forms, rivals
from attnjax.kernels.forms import BOTH, BWD, FWD, MASKS, Sizes
from tests.helpers import sample

CASES = bench.cases(bench.Config())
SMALL = Sizes(1, 256, 256, 1, 1, 16)


def tiny(case, T=32):
    """The case at sizes for the interpreter: heads that share keys where it has such."""
    z, grouped = case.z, case.z.N > case.z.K
    T, S = (min(z.T, T), T) if z.T != z.S else (T, T)
    return replace(case, z=Sizes(1, T, S, 2, 1 if grouped else 2, 16))


def find(section, name, mode):
    return next(x for x in CASES if (x.section, x.name, x.mode) == (section, name, mode))


# -------------------------------------------------------------------------------- no GPU, no file


def test_without_a_gpu_it_says_so_in_one_line():
    told = subprocess.run(
        [sys.executable, "-m", "kernels.bench"],
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    line = "kernels.bench needs a GPU; this process runs on cpu\n"
    assert (told.returncode, told.stdout, told.stderr) == (2, "", line)


def test_a_wrong_name_of_a_section_or_case_has_a_suggestion():
    with pytest.raises(lab.UserError, match="did you mean masks"):
        bench.cases(bench.Config(only=("mask",)))
    with pytest.raises(lab.UserError, match="did you mean sigmoid"):
        bench.cases(bench.Config(kinds=("sigmod",)))


# ----------------------------------------------------------------------------------------- counts


def allowed(form, z):
    """(T,S) of the first head, from positions or from a selection that is really made."""
    if form.spec is not None:
        return forms.mask_of(form.spec, z).dense(z.T, z.S)
    made = jax.jit(lambda key: form.settings(z, form.draw(z, key)[3:])["mask"].mask)
    return np.asarray(made(jax.random.key(1)))[0, 0]


@pytest.mark.parametrize("name", [*MASKS, *forms.SELECTED])
def test_pairs_are_those_allowed(name):
    how = forms.SELECTED.get(name)
    form = forms.selected_form(*how) if how else forms.plain(*MASKS[name])
    assert form.pairs(SMALL) == allowed(form, SMALL).sum()
    if how:  # at full size blocks have their length, and not all are taken
        assert form.pairs(SMALL) < 256 * 257 / 2


def test_operations_of_an_allowed_pair():
    z = Sizes(2, 16, 16, 4, 4, 64)
    causal = bench.Case("dense", "causal", forms.plain("causal"), z, FWD)
    assert causal.flops == 4 * 136 * 64 * 4 * 2  # 136 = 16 * 17 / 2
    assert replace(causal, mode=BWD).flops == 2.5 * causal.flops
    linear = bench.Case("linear", "none", forms.linear_form("none"), z, BOTH)
    assert linear.flops == 3.5 * 4 * 64 * 64 * 16 * 4 * 2
    decode = find("decode", "keys", FWD)
    assert decode.bytes == 2 * (131072 * 8 * 128) * 2  # k and v, two bytes a number


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("mode", [FWD, BWD])
def test_the_visited_share_is_that_of_tiles_with_an_allowed_pair(name, mode):
    from attnjax.core.pairwise.fused import tilings

    z = Sizes(1, 1024, 1024, 1, 1, 128)
    dense = allowed(forms.plain(*MASKS[name]), z)
    used = tilings(jnp.bfloat16, 128, 128, 90)
    shares = [
        dense.reshape(1024 // t.block_q, t.block_q, 1024 // t.block_k, t.block_k).any((1, 3)).mean()
        for t in (used[:1] if mode == FWD else used[1:])
    ]
    assert forms.visited(MASKS[name], z, mode) == pytest.approx(np.mean(shares), abs=1e-12)


@pytest.mark.parametrize("name", [name for name in MASKS if name != "full"])
def test_flex_attention_is_given_the_same_mask(name, monkeypatch):
    """PyTorch is not needed for arithmetic on integers: NumPy stands in."""
    stand_in = types.SimpleNamespace(arange=lambda n, device: np.arange(n), clamp=np.clip)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    see = rivals.mask_mod(forms.scaled(MASKS[name], SMALL), SMALL, "cuda")
    at = np.arange(256)
    got = see(0, 0, at[:, None], at[None])
    np.testing.assert_array_equal(got, allowed(forms.plain(*MASKS[name]), SMALL))


# -------------------------------------------------------------------------------- ready to be run


def kinds():
    """One case of each section and name, with its backward pass."""
    return list({(x.section, x.name.split(" H=")[0]): x for x in CASES}.values())


def test_every_case_can_be_traced():
    for case in kinds():
        case = tiny(case, T=64)
        form, z, impl = case.form, case.z, forms.kernel(case.form, True)
        fn, n = form.run(z, impl), form.learned

        def both(key, fn=fn, form=form, z=z, n=n):
            args = form.draw(z, key)
            first, rest = args[:n], args[n:]
            out, pull = jax.vjp(lambda *some, rest=rest, fn=fn: fn(*some, *rest), *first)
            return args, out, pull(out)

        args, out, grads = jax.eval_shape(both, jax.random.key(0))
        assert (out.shape, out.dtype) == (args[0].shape, jnp.bfloat16), case.key
        assert [g.shape for g in grads] == [x.shape for x in args[:n]], case.key
        assert len(form.letters) == len(args) - 3, case.key


def test_sections_have_the_sizes_that_they_are_known_for():
    assert len({x.key for x in CASES}) == len(CASES)
    dense = [x.z for x in CASES if x.section == "dense"]
    assert {z.B * z.T for z in dense} == {16384} and {z.N * z.H for z in dense} == {2048}
    assert all(x.z.T**2 * x.z.B * x.z.N * 4 <= 8e9 for x in CASES if "xla" in x.others)
    quick = {x.key for x in bench.cases(bench.QUICK)}
    assert quick <= {x.key for x in CASES} and 10 < len(quick) < 40
    assert {key.split(" |")[0] for key in quick} == set(bench.SECTIONS)


RUN = {  # section -> one of its cases
    "verify": ("document H=64", BOTH), "dense": ("causal", FWD), "normalizers": ("sigmoid", FWD),
    "mods": ("forget", FWD), "masks": ("sinks 4, window 1024", FWD), "selected": ("nsa of 64", FWD),
    "decode": ("keys", FWD), "linear": ("delta", BOTH),
}  # fmt: skip


@pytest.mark.parametrize("section", sample(["dense", "decode"], RUN))
def test_a_case_of_each_section_is_right_in_the_interpreter(section):
    case = tiny(find(section, *RUN[section]))
    run = forms.ours(case.form, case.z, case.mode, forms.kernel(case.form, True))
    run.load(3)
    got = forms.verify(case.form, case.z, run)
    assert got["holds"] and got["wrong"] == [], got
    assert len(got["errors"]) == (2 if case.mode == FWD else 8)
    assert all(x[1] < 0.1 for name, x in got["errors"].items() if name.endswith("rms"))


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (("dense", "causal", FWD), "xla"), (("masks", "window 256", FWD), "xla"),
        (("masks", "causal", FWD), "full"), (("selected", "nsa of 64", FWD), "choosing"),
        (("linear", "scalar", FWD), "chunked"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_compared_runs(which, name, monkeypatch):
    monkeypatch.setattr(forms, "kernel", lambda form: "dense")
    case = tiny(find(*which))
    run = bench.runner(case if name != "xla" else replace(case, base=None), name)
    run.load(0)
    assert np.isfinite(np.asarray(run.run(2), np.float32)).all()
    if name in ("xla", "chunked"):  # the same as ours, at the same tolerance
        assert forms.verify(case.form, case.z, run)["holds"]


def test_what_is_slightly_wrong_is_found():
    z = Sizes(1, 32, 32, 2, 1, 16)
    form, draw = forms.plain("causal"), functools.partial(forms.plain("causal").draw, z)
    fn = form.run(z, "dense")
    wrong = forms.Jax(lambda q, k, v: fn(q, k, v.at[:, 7].multiply(0.7)), draw, BOTH)
    wrong.load(0)
    got = forms.verify(form, z, wrong)
    assert not got["holds"]
    assert {text.split()[0] for text in got["wrong"]} == {"out", "dq", "dk", "dv"}
    nan = forms.Jax(lambda q, k, v: fn(q, k, v).at[0, 0, 0, 0].set(jnp.nan), draw, FWD)
    nan.load(0)
    assert not forms.verify(form, z, nan)["holds"]


def test_modes_give_the_same_numbers_on_fresh_data():
    z = Sizes(1, 32, 32, 2, 1, 16)
    form = forms.plain("causal")
    fn, draw = form.run(z, "dense"), functools.partial(form.draw, z)
    runs = {mode: forms.Jax(fn, draw, mode) for mode in (FWD, BWD, BOTH)}
    for run in runs.values():
        run.load(5)
    out, grads = runs[BOTH].run(2)
    np.testing.assert_array_equal(out, runs[FWD].run(1))
    jax.tree.map(np.testing.assert_array_equal, grads, runs[BWD].run(1))
    first = runs[FWD].args
    runs[FWD].load(6)
    assert not np.array_equal(first[0], runs[FWD].args[0])


# ------------------------------------------------------------------------------- times and reports


class Fake:
    """Takes the given seconds a call, on a clock of its own."""

    def __init__(self, clock, seconds, fails=False):
        self.clock, self.seconds, self.fails, self.seeds = clock, seconds, fails, []

    def load(self, seed):
        self.seeds.append(seed)
        self.clock.append(100.0)  # drawing is not timed

    def run(self, n):
        if self.fails and len(self.seeds) > 3:
            raise MemoryError("out of\nmemory")
        slow = 10 if self.seeds[-1] == 2 else 1
        self.clock.append(n * slow * self.seconds)

    def drop(self):
        pass


def test_medians_of_rounds_in_turns(monkeypatch):
    clock = []
    monkeypatch.setattr(forms.time, "perf_counter", lambda: math.fsum(clock))
    runs = {"a": Fake(clock, 1e-4), "b": Fake(clock, 1.0), "c": Fake(clock, 0.1, fails=True)}
    got = forms.measure(runs, 5)
    assert got["a"]["median"] == pytest.approx(1e-4) and got["a"]["chain"] in (20, 21)
    assert got["b"]["median"] == pytest.approx(1.0) and got["b"]["chain"] == 1
    assert got["b"]["low"] == pytest.approx(1.0) and got["b"]["high"] > 5  # one round was slow
    assert got["c"] == {"error": "MemoryError: out of memory"}
    assert runs["a"].seeds == [0, 1, 2, 3, 4, 5]  # new data in every round


def made_up(section, name, mode, seconds, *, verified=True, visited=None, T=4096, H=128):
    told = {
        "section": section, "name": name, "mode": mode, "verified": verified, "visited": visited,
        "sizes": Sizes(1, T, T, 16, 16, H)._asdict(), "flops": 1e12, "bytes": 1e9,
        "results": {who: {"median": s} for who, s in seconds.items()},
    }  # fmt: skip
    return bench.finished(told, {"TFLOP/s": 800.0, "GB/s": 2000.0})


def rows_of(records):
    return {what: (measured, holds) for what, measured, holds in bench.targets(records)}


def test_rates_and_ratios():
    got = made_up("dense", "causal", FWD, {"attnjax": 2e-3, "cudnn": 1e-3})["results"]
    assert got["attnjax"]["TFLOP/s"] == pytest.approx(500)
    assert got["attnjax"]["share"] == pytest.approx(0.625)
    assert got["cudnn"]["ratio"] == pytest.approx(0.5) and "ratio" not in got["attnjax"]
    decode = made_up("decode", "keys", FWD, {"attnjax": 1e-3})["results"]["attnjax"]
    assert decode["share"] == pytest.approx(0.5)


def test_targets_are_decided_by_the_worst_case():
    good = made_up("dense", "causal", FWD, {"attnjax": 1.0, "cudnn": 0.8, "flex": 1.1})
    short = made_up("dense", "causal", FWD, {"attnjax": 1.0, "cudnn": 0.1}, T=512)  # no matter
    what = "causal H=128 T>=2k fwd: 0.75 x cuDNN's speed"
    assert rows_of([good, short])[what][1] == "yes"
    assert rows_of([good])["causal H=128 T>=2k fwd: FlexAttention's speed"][1] == "yes"
    bad = made_up("dense", "causal", FWD, {"attnjax": 1.0, "cudnn": 0.74}, T=8192)
    measured, holds = rows_of([good, bad])[what]
    assert holds == "no" and measured.startswith("0.740 at worst of 2 (causal B=1 T=8192")
    assert rows_of([good])["causal H=128 T>=2k bwd: 0.65 x cuDNN's speed"] == ("not measured", "-")


def test_what_is_not_verified_is_not_counted():
    good = made_up("dense", "causal", FWD, {"attnjax": 1.0, "cudnn": 0.5})
    wrong = made_up("dense", "causal", FWD, {"attnjax": 0.1, "cudnn": 0.5}, verified=False)
    what = "causal H=128 T>=2k fwd: 0.75 x cuDNN's speed"
    assert rows_of([wrong])[what] == ("not measured; 1 not verified, not counted", "-")
    measured, holds = rows_of([good, wrong])[what]
    assert holds == "no" and "of 1 " in measured and "1 not verified" in measured
    [_, row] = bench.tables([wrong])["dense"]
    assert "invalid" in row and row[-1] == "NO" and "5.00x" not in row


@pytest.mark.parametrize(
    ("record", "what", "holds"),
    [
        (("normalizers", "sigmoid", BWD, {"attnjax": 1.09, "softmax": 1.0}), "one-pass", "yes"),
        (("normalizers", "sigmoid", BWD, {"attnjax": 1.11, "softmax": 1.0}), "one-pass", "no"),
        (("normalizers", "entmax", BWD, {"attnjax": 9.0, "softmax": 1.0}), "one-pass", "-"),
        (("masks", "causal", FWD, {"attnjax": 0.6, "full": 1.0}), "masks fwd", "yes"),
        (("masks", "causal", FWD, {"attnjax": 0.7, "full": 1.0}), "masks fwd", "no"),
        (("decode", "keys", FWD, {"attnjax": 6.2e-4}), "decode", "yes"),
        (("decode", "keys", FWD, {"attnjax": 6.3e-4}), "decode", "no"),
        (("linear", "delta", BOTH, {"attnjax": 1.19, "fla": 1.0}), "linear fwd+bwd", "yes"),
        (("linear", "delta", BOTH, {"attnjax": 1.21, "fla": 1.0}), "linear fwd+bwd", "no"),
    ],
)
def test_each_target(record, what, holds):
    found = rows_of([made_up(*record, visited=0.5)])
    told = [got for name, (_, got) in found.items() if name.startswith(what)]
    assert holds in told and set(told) <= {holds, "-"}


# ---------------------------------------------------------------------------------------- the file


@pytest.fixture
def on_cpu(monkeypatch):
    """Two small cases, by the dense formula, as if this were a GPU."""
    z, form = Sizes(1, 16, 16, 1, 1, 8), forms.plain("causal")
    small = [bench.Case("dense", name, form, z, FWD, ("xla", "torch")) for name in ("one", "two")]
    ran = []
    measure = forms.measure
    spy = lambda runs, n: ran.append(list(runs)) or measure(runs, n)
    monkeypatch.setattr(forms, "measure", spy)
    monkeypatch.setattr(bench, "cases", lambda config: small)
    monkeypatch.setattr(forms, "kernel", lambda form: "dense")
    monkeypatch.setattr(rivals, "missing", lambda name: "not here")
    monkeypatch.setattr(forms, "ceilings", lambda rounds: {"TFLOP/s": 1.0, "GB/s": 1.0})
    return small, ran


def test_a_rerun_goes_on_with_what_is_missing(on_cpu, tmp_path, capsys, monkeypatch):
    small, ran = on_cpu
    monkeypatch.setattr(forms, "verify", lambda form, z, run: {"holds": True})
    config = bench.Config(rounds=2, out=tmp_path)
    bench.main(config)
    assert ran == [["attnjax", "xla"]] * 2
    path = tmp_path / "cpu.json"
    store = json.loads(path.read_text())
    assert list(store["cases"]) == [x.key for x in small]
    assert all(x["verified"] for x in store["cases"].values())
    assert store["absent"] == {"torch": "not here", "fla": "not here"}
    bench.main(config)
    assert len(ran) == 2
    del store["cases"][small[0].key]  # as if killed; the other one raised
    store["cases"][small[1].key]["results"]["attnjax"] = {"error": "OSError: no"}
    bench.save(path, store)
    assert "OSError: no" in path.with_suffix(".md").read_text()
    bench.main(config)
    assert len(ran) == 4 and "OSError" not in path.with_suffix(".md").read_text()
    bench.main(replace(config, again=True))
    assert len(ran) == 6
    told = path.with_suffix(".md").read_text()
    assert "| target | measured | holds |" in told and "not measured" in told
    assert "left out: torch: not here" in capsys.readouterr().out


def test_a_case_that_raises_is_recorded_and_others_go_on(on_cpu, tmp_path, monkeypatch):
    def broken(name, spec):
        raise RuntimeError("xla is unwell")

    monkeypatch.setattr(forms, "jax_nn", broken)
    bench.main(bench.Config(rounds=1, out=tmp_path))
    store = json.loads((tmp_path / "cpu.json").read_text())
    for told in store["cases"].values():
        assert told["results"]["xla"] == {"error": "RuntimeError: xla is unwell"}
        assert told["results"]["attnjax"]["median"] > 0 and told["verified"]
    assert "xla is unwell" in (tmp_path / "cpu.md").read_text()


def test_a_file_that_is_not_ours_is_left_alone(tmp_path):
    path = tmp_path / "cpu.json"
    for text in ("{", "[]", '{"cases": 3}'):
        path.write_text(text)
        with pytest.raises(lab.UserError, match="move it away"):
            bench.opened(path)
        assert path.read_text() == text


def test_ceilings_of_a_small_product_and_copy():
    got = forms.ceilings(2, n=64, copied=1 << 16)
    assert set(got) == {"TFLOP/s", "GB/s"} and all(0 < x < 1e5 for x in got.values())
