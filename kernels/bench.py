"""The Triton kernels on this GPU: right, and how fast, beside the libraries that are installed.

    python -m kernels.bench                       # everything, 184 cases
    python -m kernels.bench --quick               # 34 of them, meant for ten minutes
    python -m kernels.bench --only dense decode   # some sections
    python -m kernels.bench --rounds 50 --out elsewhere --again

Each case is first verified: output and gradients of the very program that is timed, for the first
example and key head, against the dense formula in float32; the error may be at most twice that of
the same formula computed with bfloat16 scores and weights (linear attention: 1% rms).  Then all
that is compared takes turns in every round, each round on fresh data; a measurement is a chain of
calls of 2 ms at least, behind one that is not counted.  Times are medians with quartiles.

Useful operations are 4 H per allowed pair forward, 2.5 times that backward; linear attention counts
4 H D per token forward.  The ceilings are a bfloat16 product of 8192^3 and a copy, measured first.

<out>/<device>.json is written after each case, and a rerun measures what is not in it (and what
raised); <out>/<device>.md are tables and targets.
"""

import contextlib
import datetime
import functools
import gc
import importlib.metadata
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from attnjax.kernels import forms, launch, rivals
from attnjax.kernels.forms import BOTH, BWD, DTYPE, FWD, MASKS, Form, Runner, Sizes

Record = dict[str, Any]
US = "attnjax"


@dataclass(frozen=True)
class Config:
    """What to measure; the defaults are the full run."""

    only: tuple[str, ...] = ()  # names of sections; all if none
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)  # B * T = 16k
    widths: tuple[int, ...] = (64, 128, 256)  # of a head; N * H = 2048
    masks: tuple[str, ...] = ("causal", "full")  # of section dense
    kinds: tuple[str, ...] = ()  # of the other sections' cases; all if none
    contexts: tuple[int, ...] = (16384, 32768, 65536, 131072)  # of section decode
    queries: tuple[int, ...] = (1, 16)
    linear: tuple[int, ...] = (16384, 2048)
    rounds: int = 20
    out: Path = Path("kernels/results")
    again: bool = False  # measure what is in the file already, too


QUICK = replace(
    Config(), lengths=(2048, 16384), widths=(128,), masks=("causal",), contexts=(16384, 131072),
    queries=(1,), linear=(16384,), kinds=(
        "causal H=128", "document H=128", "sigmoid H=128", "softmax_sink", "sigmoid", "entmax",
        "alibi", "forget", "causal", "window 1024", "document 8", "nsa of 64", "keys", "scalar",
        "delta",
    ),
)  # fmt: skip

# -------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """One table row: a form at its sizes beside rivals, and beside another form (`base`)."""

    section: str
    name: str
    form: Form
    z: Sizes
    mode: str
    others: tuple[str, ...] = ()
    base: tuple[str, Form] | None = None

    @property
    def key(self) -> str:
        sizes = " ".join(f"{a}={n}" for a, n in self.z._asdict().items())
        return f"{self.section} | {self.name} | {sizes} | {self.mode}"

    @property
    def flops(self) -> float:
        z, factor = self.z, {FWD: 1.0, BWD: 2.5, BOTH: 3.5}[self.mode]
        per_pair = 4 * z.H * (z.H if self.form.settings is None else 1)
        return factor * per_pair * z.B * z.N * self.form.pairs(z)

    @property
    def bytes(self) -> float:
        """Of k and v, read once."""
        return 2 * self.z.B * self.z.S * self.z.K * self.z.H * jnp.dtype(DTYPE).itemsize

    @property
    def share(self) -> float | None:
        spec = self.form.spec if self.section == "masks" else None
        return forms.visited(spec, self.z, self.mode) if spec else None


def verify_cases(c: Config) -> Iterator[Case]:
    known = forms.normalizer_forms()
    masks = ("causal", "full", "window 256", "document 8")
    these = {name.split(" ")[0]: forms.plain(*MASKS[name]) for name in masks}
    these |= {name: known[name] for name in ("sigmoid", "softmax_sink")}
    for H, (name, form), K in itertools.product((64, 128), these.items(), (8, 2)):
        yield Case("verify", f"{name} H={H}", form, Sizes(2, 1024, 1024, 8, K, H), BOTH)


def dense_cases(c: Config) -> Iterator[Case]:
    for name, H, T, mode in itertools.product(c.masks, c.widths, c.lengths, (FWD, BWD)):
        z = Sizes(max(1, 16384 // T), T, T, 2048 // H, 2048 // H, H)
        small = ("xla",) if T * T * z.B * z.N * 4 <= 8e9 else ()
        others = ("cudnn", *small, "torch", "torch cudnn", "flex")
        yield Case("dense", name, forms.plain(name), z, mode, others)


def compared(section: str, these: dict[str, Form], base: str, z: Sizes, others: Any = {}):  # noqa: B006
    """Each form, forward and backward, beside the one of name `base`."""
    for name, form in these.items():
        for mode in (FWD, BWD):
            beside = None if name == base else (base, these[base])
            yield Case(section, name, form, z, mode, others.get(name, ()), beside)


def normalizer_cases(c: Config) -> Iterator[Case]:
    z = Sizes(4, 4096, 4096, 16, 16, 128)
    yield from compared("normalizers", forms.normalizer_forms(), "softmax", z)


def mod_cases(c: Config) -> Iterator[Case]:
    yield from compared("mods", forms.mod_forms(), "none", Sizes(4, 4096, 4096, 16, 16, 128))


def mask_cases(c: Config) -> Iterator[Case]:
    others = {name: ("flex",) for name in MASKS}
    others |= {name: ("flex", "cudnn") for name in MASKS if name.startswith("window")}
    these = {name: forms.plain(*spec) for name, spec in MASKS.items()}
    yield from compared("masks", these, "full", Sizes(1, 16384, 16384, 16, 16, 128), others)


def selected_cases(c: Config) -> Iterator[Case]:
    for name, how in forms.SELECTED.items():
        K = 16 if how[0] == "N" else 8
        z, form = Sizes(1, 16384, 16384, 16, K, 128), forms.selected_form(*how)
        for mode in (FWD, BWD):
            others = ("choosing",) if mode == FWD else ()
            yield Case("selected", name, form, z, mode, others, ("causal", forms.plain("causal")))


def decode_cases(c: Config) -> Iterator[Case]:
    """All queries see all keys: they stand at the end."""
    for S, T in itertools.product(c.contexts, c.queries):
        z = Sizes(max(1, 131072 // S), T, S, 32, 8, 128)
        yield Case("decode", "keys", forms.plain("full"), z, FWD, ("cudnn", "xla", "torch"))


def linear_cases(c: Config) -> Iterator[Case]:
    these = {kind: forms.linear_form(kind) for kind in ("none", "scalar", "channel", "delta")}
    for T, (kind, form), mode in itertools.product(c.linear, these.items(), (FWD, BOTH)):
        z = Sizes(2 if T > 4096 else 4, T, T, 16, 16, 128)
        yield Case("linear", kind, form, z, mode, ("chunked", "fla"))


SECTIONS: dict[str, Callable[[Config], Iterator[Case]]] = {
    "verify": verify_cases, "dense": dense_cases, "normalizers": normalizer_cases,
    "mods": mod_cases, "masks": mask_cases, "selected": selected_cases, "decode": decode_cases,
    "linear": linear_cases,
}  # fmt: skip


def cases(c: Config) -> list[Case]:
    from attnjax import lab

    chosen = lab.choose("only", c.only, SECTIONS) if c.only else SECTIONS
    every = {name: list(section(c)) for name, section in SECTIONS.items()}
    if c.kinds:
        lab.choose("kinds", c.kinds, {x.name: x for found in every.values() for x in found})
    kept = lambda x: not c.kinds or x.section == "dense" or x.name in c.kinds
    return [x for name in chosen for x in every[name] if kept(x)]


def runner(case: Case, name: str) -> Runner:
    """What `name` runs for this case."""
    form, z, mode = case.form, case.z, case.mode
    if name == US:
        return forms.ours(form, z, mode, forms.kernel(form))
    if case.base is not None and name == case.base[0]:
        return forms.ours(case.base[1], z, mode, forms.kernel(case.base[1]))
    if name == "chunked":
        return forms.ours(form, z, mode, "chunked")
    if name == "choosing":
        choose = lambda q, k, v, *_: form.extras(z, jax.random.key(0), q, k)[0].astype(DTYPE)
        return forms.Jax(choose, functools.partial(form.draw, z), mode)
    if name == "fla":
        return rivals.linear(z, mode, form.fla)
    assert form.spec is not None
    spec = forms.scaled(form.spec, z)
    if name in ("cudnn", "xla"):
        return forms.Jax(forms.jax_nn(name, spec), functools.partial(form.draw, z), mode)
    if name == "flex":
        return rivals.flex(z, mode, spec)
    return rivals.sdpa(z, mode, spec, "cudnn" if "cudnn" in name else "default")


# --------------------------------------------------------------------------------------- measured


def record(case: Case, absent: dict[str, str], top: Record, rounds: int) -> Record:
    """Everything about one case: checked, then timed."""
    told: Record = {
        "section": case.section, "name": case.name, "sizes": case.z._asdict(), "mode": case.mode,
        "flops": case.flops, "bytes": case.bytes, "visited": case.share, "verified": False,
    }  # fmt: skip
    runs: dict[str, Runner] = {}
    failed: dict[str, Record] = {}
    names = [US, *((case.base[0],) if case.base else ()), *case.others]
    for name in names:
        if library_of(name) in absent:
            continue
        try:
            runs[name] = runner(case, name)
            runs[name].load(0)
            if name == US:
                told["check"] = checked(case, runs[name])
                told["verified"] = told["check"].get("holds", False)
            runs[name].drop()
        except Exception as error:
            failed[name] = {"error": forms.one_line(error)}
            if name in runs:
                runs.pop(name).drop()
            if name == US:
                break  # there is nothing to compare the others with
    got = forms.measure(runs, rounds) if US in runs else {}
    return finished({**told, "results": {**got, **failed}}, top)


def checked(case: Case, run: Any) -> Record:
    """The verdict, or the error of what it is compared with: that is not the kernel's."""
    try:
        return forms.verify(case.form, case.z, run)
    except Exception as error:
        return {"error": forms.one_line(error)}


def finished(told: Record, top: Record) -> Record:
    """With rates, shares of the ceiling `top`, and how many times as fast as each other ours is."""
    ours = told["results"].get(US, {}).get("median")
    for name, x in told["results"].items():
        if "median" in x:
            x["TFLOP/s"] = told["flops"] / x["median"] / 1e12
            x["GB/s"] = told["bytes"] / x["median"] / 1e9
            x["share"] = x[unit(told)] / top[unit(told)]
            if ours and name != US:
                x["ratio"] = x["median"] / ours
    return told


def unit(told: Record) -> str:
    return "GB/s" if told["section"] == "decode" else "TFLOP/s"


def library_of(name: str) -> str:
    return "torch" if name == "flex" else name.split(" ")[0]


# ------------------------------------------------------------------------------------- the targets


def targets(records: Iterable[Record]) -> list[tuple[str, str, str]]:
    """target | measured | holds; the worst of the verified cases decides."""
    every = list(records)

    def row(what: str, other: str, least: float, where: Callable[[Record], bool]) -> Any:
        """`other`: whose ratio; "share"; or "visited", the speed beside "full" times the share."""
        found, unsure = [], 0
        for x in filter(where, every):
            mine = x["results"].get(US, {})
            value = mine.get("share") if other == "share" else None
            if other == "visited" and x["visited"]:
                value = x["results"].get("full", {}).get("ratio", float("nan")) * x["visited"]
            elif other != "share":
                value = x["results"].get(other, {}).get("ratio")
            if "median" in mine and not x["verified"]:
                unsure += 1
            elif value is not None and value == value:
                found.append((value, label(x)))
        note = f"; {unsure} not verified, not counted" if unsure else ""
        if not found:
            return what, f"not measured{note}", "-"
        value, place = min(found)
        holds = "yes" if value >= least else "no"
        return what, f"{value:.3f} at worst of {len(found)} ({place}){note}", holds

    of = lambda section, mode: lambda x: (x["section"], x["mode"]) == (section, mode)

    def long(mode: str) -> Callable[[Record], bool]:
        z = lambda x: x["sizes"]["H"] == 128 and x["sizes"]["T"] >= 2048 and x["name"] == "causal"
        return lambda x: of("dense", mode)(x) and z(x)

    start = "causal H=128 T>=2k"
    rows = [
        row(f"{start} fwd: 0.75 x cuDNN's speed", "cudnn", 0.75, long(FWD)),
        row(f"{start} fwd: FlexAttention's speed", "flex", 1.0, long(FWD)),
        row(f"{start} bwd: 0.65 x cuDNN's speed", "cudnn", 0.65, long(BWD)),
    ]
    for mode in (FWD, BWD):
        which = of("normalizers", mode)
        one_pass = lambda x, which=which: which(x) and x["name"] in forms.ONE_PASS
        what = f"one-pass normalizers {mode}: softmax's speed / 1.1"
        rows.append(row(what, "softmax", 1 / 1.1, one_pass))
    for mode in (FWD, BWD):
        what = f"masks {mode}: speed beside full x share of tiles >= 0.8"
        rows.append(row(what, "visited", 0.8, of("masks", mode)))
    rows.append(row("decode: 0.8 x copy bandwidth", "share", 0.8, of("decode", FWD)))
    for mode in (FWD, BOTH):
        rows.append(row(f"linear {mode}: fla's speed / 1.2", "fla", 1 / 1.2, of("linear", mode)))
    return rows


def label(x: Record) -> str:
    z = x["sizes"]
    return f"{x['name']} B={z['B']} T={z['T']} S={z['S']} N={z['N']} K={z['K']} H={z['H']}"


def tables(records: Iterable[Record]) -> dict[str, list[tuple[str, ...]]]:
    """By section a header, then a row a case; rivals' columns: how many times as fast ours is."""
    by_section: dict[str, list[Record]] = {}
    for x in records:
        by_section.setdefault(x["section"], []).append(x)
    return {section: _rows(found) for section, found in by_section.items()}


def _rows(found: list[Record]) -> list[tuple[str, ...]]:
    others = list(dict.fromkeys(name for x in found for name in x["results"] if name != US))
    tiled = found[0]["visited"] is not None
    columns = ("case", *(("tiles",) if tiled else ()), "mode", "ms", unit(found[0]), "of ceiling")
    rows: list[tuple[str, ...]] = [(*columns, *(f"/ {o}" for o in others), "verified")]
    for x in found:
        mine = x["results"].get(US, {})
        numbers = ("invalid", "", "")
        if "median" not in mine:
            numbers = ("error", "", "")
        elif x["verified"]:
            ms, rate = 1e3 * mine["median"], mine[unit(x)]
            numbers = (f"{ms:.4g}", f"{rate:.4g}", f"{mine['share']:.2f}")

        def cell(name: str, x: Record = x) -> str:
            got = x["results"].get(name, {})
            if "error" in got:
                return "error"
            return f"{got['ratio']:.2f}x" if "ratio" in got and x["verified"] else ""

        sure = "yes" if x["verified"] else "NO"
        tiles = (f"{x['visited']:.3f}",) if tiled else ()
        rows.append((label(x), *tiles, x["mode"], *numbers, *map(cell, others), sure))
    return rows


def markdown(store: Record) -> str:
    lines = [f"# {store['device']}", ""]
    lines += [f"{store['date']}; " + ", ".join(f"{k} {v}" for k, v in store["versions"].items())]
    top = store["ceilings"]
    lines += ["", f"Ceilings: {top['TFLOP/s']:.0f} TFLOP/s, {top['GB/s']:.0f} GB/s.", ""]
    if store["absent"]:
        lines += ["Left out: " + "; ".join(f"{k}: {v}" for k, v in store["absent"].items()), ""]
    records = list(store["cases"].values())
    lines += _table([("target", "measured", "holds"), *targets(records)])
    for section, rows in tables(records).items():
        lines += ["", f"## {section}", "", *_table(rows)]
    wrong = [
        f"- {key}: {who}: {x['error']}"
        for key, told in store["cases"].items()
        for who, x in [*told["results"].items(), ("check", told.get("check", {}))]
        if "error" in x
    ]
    for key, told in store["cases"].items():
        bad = told.get("check", {}).get("wrong", [])
        wrong += [f"- {key}: not verified: {', '.join(bad)}"] if bad else []
    return "\n".join([*lines, *(["", "## What went wrong", "", *wrong] if wrong else []), ""])


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


# ---------------------------------------------------------------------------------------- the file


def opened(path: Path) -> Record:
    """What an earlier run has written; empty if none has.  UserError for what is no such file."""
    from attnjax import lab

    if not path.exists():
        return {"cases": {}}
    try:
        store = json.loads(path.read_text())
        store["cases"].values()
        return store
    except (ValueError, KeyError, TypeError, AttributeError):
        raise lab.UserError(f"out: {path} is not a file of this program; move it away") from None


def missing(found: Iterable[Case], store: Record, again: bool) -> list[Case]:
    """The cases to run: those of which the file has no time."""
    has = lambda key: "median" in store["cases"].get(key, {}).get("results", {}).get(US, {})
    return [case for case in found if again or not has(case.key)]


def save(path: Path, store: Record) -> None:
    from attnjax.lab.report import write_atomically

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        if isinstance(x, list | tuple):
            return [plain(value) for value in x]
        return str(x) if isinstance(x, float) and not math.isfinite(x) else x

    text = json.dumps(plain(store), indent=1, allow_nan=False)
    write_atomically(path, text.encode())
    write_atomically(path.with_suffix(".md"), markdown(store).encode())


def versions() -> dict[str, str]:
    told, names = {}, ("jax", "jaxlib", "jax-triton", "triton", "torch", "flash-linear-attention")
    for name in names:
        found = list(importlib.metadata.distributions(name=name))
        told[name] = found[0].version if found else "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    except OSError:
        told["driver"] = "unknown"
    return told


def main(config: Config) -> None:
    """Measures what the file has not, writes after each case, and judges the targets."""
    from rich.console import Console
    from rich.table import Table

    from attnjax import lab

    lab.positive(config, "rounds")
    found = cases(config)
    console, folder = Console(), lab.results_folder(config.out)
    device = jax.devices()[0].device_kind
    path = folder / f"{re.sub('[^a-z0-9]+', '-', device.lower())}.json"
    store = opened(path)
    absent = {name: why for name in ("torch", "fla") if (why := rivals.missing(name))}
    for name, why in absent.items():
        console.print(f"left out: {name}: {why}", highlight=False)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    top = forms.ceilings(config.rounds)
    store |= {"device": device, "versions": versions(), "date": date}
    store |= {"ceilings": top, "absent": absent}
    save(path, store)
    console.print(f"{device}: {top['TFLOP/s']:.0f} TFLOP/s, {top['GB/s']:.0f} GB/s")
    todo = missing(found, store, config.again)
    console.print(f"{len(found)} cases, {len(found) - len(todo)} of them are in {path}")
    for i, case in enumerate(todo, 1):
        began = time.monotonic()
        told = record(case, absent, top, config.rounds)
        store["cases"][case.key] = {**told, "date": date}
        save(path, store)
        gc.collect()
        row, took = _rows([told])[1], time.monotonic() - began
        line = f"{i}/{len(todo)} {case.section}: {' | '.join(row)}  ({took:.0f} s)"
        console.print(line, highlight=False)
    table = Table("target", "measured", "holds")
    for row in targets(store["cases"].values()):
        table.add_row(*row)
    console.print(table, f"Tables and numbers: {path.with_suffix('.md')}", highlight=False)


@contextlib.contextmanager
def _own_cache_of_triton() -> Iterator[None]:
    """Importing jax-triton 0.3.1 empties TRITON_CACHE_DIR, without which Triton compiles nothing.

    FlexAttention and flash-linear-attention do, in this process.
    """
    before = os.environ.get("TRITON_CACHE_DIR")
    yield
    os.environ.pop("TRITON_CACHE_DIR", None)
    if before:
        os.environ["TRITON_CACHE_DIR"] = before


def entry() -> None:
    # JAX would take three quarters of the memory at its first use, and PyTorch needs some, too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with _own_cache_of_triton():
        reason = launch.missing()
    if reason is not None:
        print(f"kernels.bench {reason.replace(', this', '; this')}", file=sys.stderr)
        raise SystemExit(2)
    from attnjax import lab

    lab.run_cli(main, __doc__, Config(), QUICK)


if __name__ == "__main__":
    entry()
