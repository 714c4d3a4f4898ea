"""Attention over one device and over eight: error, work, time, bytes sent, memory and balance.

    python -m experiments.context_parallel            # 13 minutes of CPU time, 17 on two busy cores
    python -m experiments.context_parallel --quick    # two CPU cores: under a minute; what CI runs

  "Long-Context Attention Benchmark: From Kernel Efficiency to Distributed Context Parallelism",
      2025: the mask largely decides which kernel or context-parallel strategy wins, and none wins
      for all masks and lengths (there on up to 96 GPUs).

Every mask, for every setting T N/K (tokens, query heads, key heads), in float32: dense, blockwise
and jax.nn on one device, then the strategies of attnjax.parallel over tokens already laid out, on
as many devices as `devices` says, virtual ones where there is only a CPU.  The letter of a column
tells what kind of number it is; table.csv has all of them, forward and forward + backward.

  (m) measured    "error": the largest difference to float64, of output and gradients, each over
                  its largest value or 1; "ms": the median of rounds in which all take turns;
                  "GFLOP/s": of the FLOPs of allowed pairs, all devices together
  (c) counted     in the compiled program of a device: "sent kB", "hops" that keys make, "temp MB"
  (f) formula     "GFLOP" = 2 (H + D) N x allowed pairs forward, 3.5 times that with backward;
                  "imbalance" = max / mean over devices of the pairs that their queries may see

Virtual devices share the cores of one machine: their "ms" is the work of all of them and what
moving it costs, in no case the time that eight devices would take.  That is predicted (f) for the
masks and the machines that attnjax.parallel.planning covers, and marked so.

Backward, a strategy moves keys again; of a walk of one hop XLA sees that it did so before, and the
program of both sends less than the formula.  With a window and as many key heads as query heads,
that alone puts the contiguous ring below Ulysses (and keeps Ulysses from sending least everywhere)
when backward counts; forward the ring is below by the formula, too.

What cannot run is in the table under "refused", with the number of its reason.
"""

import csv
import functools
import io
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from attnjax import attend, lab, masks
from attnjax.lab import Claim, Criterion, above, below, between, distributed
from attnjax.lab.claims import plus_minus
from attnjax.lab.report import write_atomically
from attnjax.lab.timing import BOTH, FORWARD, Timed, take_turns
from attnjax.parallel import USP, AllGather, Ring, Ulysses
from attnjax.parallel.layouts import order
from attnjax.parallel.model import costs, planning, traffic
from attnjax.parallel.model.balance import areas, imbalance, random_documents, row_counts
from attnjax.parallel.model.planning import Setting

PAPERS = (53,)

WAYS = (
    "dense", "blockwise", "jax.nn", "ring contiguous", "ring zigzag", "ring striped", "ulysses",
    "usp zigzag", "all-gather zigzag",
)  # fmt: skip
MODES = {FORWARD: 1.0, BOTH: 1 + costs.BACKWARD_FLOPS}  # FLOPs over those of forward
COVERED: tuple[costs.Mask, ...] = ("full", "causal", "window")  # by the formulas
Arrays = tuple[np.ndarray, ...]
Sizes = tuple[int, int, int]  # T, N, K
Key = tuple[str, str, str]  # mask, way, setting


@dataclass(frozen=True)
class Config:
    """What to measure; the defaults are the full run."""

    masks: tuple[str, ...] = (
        "full", "causal", "window", "documents", "prefix-LM", "shared question", "block-sparse",
    )  # fmt: skip
    ways: tuple[str, ...] = WAYS
    settings: tuple[Sizes, ...] = ((1024, 4, 1), (2048, 8, 8))
    modes: tuple[str, ...] = (FORWARD, BOTH)
    devices: int = 8
    width: int = 64  # of a head
    rounds: int = 3
    results: Path = Path("results/context_parallel")

    def __post_init__(self):
        lab.positive(self, "devices width rounds")
        lab.choose("masks", self.masks, PATTERNS)
        lab.choose("modes", self.modes, MODES)
        lab.choose("ways", self.ways, dict.fromkeys(WAYS))
        if self.devices % 2 or self.devices < 4:
            raise lab.UserError(f"devices: got {self.devices}, expected an even number from 4 on")
        if not self.settings:
            raise lab.UserError("settings: got none, expected (T, N, K) of one at least")
        for T, N, K in self.settings:
            if min(T, N, K) < 1 or N % K or T % 32:
                raise lab.UserError(
                    f"settings: got {T} {N} {K}, expected T a multiple of 32, and of N by K"
                )


# ------------------------------------------------------------------------------------- the masks


def _documents(T: int) -> masks.Mask:
    return masks.causal & masks.document(random_documents(T, 8, seed=0))


def _shared_question(T: int) -> masks.Mask:
    """A question of an eighth of the tokens, and answers that see it and themselves."""
    answers = random_documents(T, 8, seed=1) + 1
    ids = np.where(np.arange(T) < T // 8, 0, answers).astype(np.int32)
    return masks.causal & (masks.document(ids) | masks.prefix(T // 8))


def _block_sparse(T: int) -> masks.Mask:
    """The diagonal of 16 x 16 blocks, and a quarter of the others."""
    chosen = np.random.default_rng(2).random((16, 16)) < 0.25
    return masks.block_layout(chosen | np.eye(16, dtype=bool), T // 16, T // 16)


def keys_seen(T: int) -> int:
    """How many keys the window shows a query."""
    return T // 16


PATTERNS: dict[str, Callable[[int], masks.Mask]] = {
    "full": lambda T: masks.window(None, None),
    "causal": lambda T: masks.causal,
    "window": lambda T: masks.causal & masks.window(keys_seen(T) - 1),
    "documents": _documents,
    "prefix-LM": lambda T: masks.causal | masks.prefix(T // 4),
    "shared question": _shared_question,
    "block-sparse": _block_sparse,
}

QUICK = replace(
    Config(), masks=("causal", "window", "shared question"), settings=((512, 4, 4),),
    modes=(FORWARD,), rounds=1,
)  # fmt: skip

# --------------------------------------------------------------------- the ways to run attention


@dataclass(frozen=True)
class Way:
    """An implementation of `attend` (or "jax.nn"), the mesh it runs on, and what formulas know.

    heads    how many neighboring devices share heads, each with the queries of all of them
    cost     the formula of bytes sent, None where there is none
    """

    impl: Any
    mesh: Mesh
    heads: int = 1
    cost: Callable[[costs.Attention], costs.Cost] | None = None

    @property
    def alone(self) -> bool:
        return self.mesh.size == 1

    @property
    def split(self) -> PartitionSpec:
        return PartitionSpec() if self.alone else PartitionSpec(None, self.impl.sharding.axes)

    def places(self, T: int) -> np.ndarray:
        """The position of each token of each part of the layout, (parts, T/parts)."""
        parts = self.mesh.size // self.heads
        kind = "contiguous" if self.alone else self.impl.sharding.layout
        return order(kind, parts, T).reshape(parts, -1)

    def attend(self, pattern: str, mask: masks.Mask) -> Callable[..., jax.Array]:
        """Attention over whole arrays whose tokens are laid out."""
        if self.impl == "jax.nn":
            return functools.partial(jax_nn, pattern)
        fn = lambda q, k, v: attend(q, k, v, mask=mask, impl=self.impl)
        if self.alone:
            return fn
        return jax.shard_map(
            fn, mesh=self.mesh, in_specs=self.split, out_specs=self.split, check_vma=False
        )


def jax_nn(pattern: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """jax.nn's attention, for the masks that it has names for."""
    options: dict[str, dict[str, Any]] = {
        "full": {}, "causal": {"is_causal": True},
        "window": {"is_causal": True, "local_window_size": (keys_seen(q.shape[1]) - 1, 0)},
    }  # fmt: skip
    if pattern not in options:
        raise ValueError("jax.nn names full, causal and window; others are T x S booleans to it")
    return jax.nn.dot_product_attention(q, k, v, **options[pattern])


def ways(config: Config) -> dict[str, Way]:
    """Those asked for."""
    P, there = config.devices, jax.devices()
    if len(there) < P:
        there = jax.devices("cpu")
    if len(there) < P:
        raise lab.UserError(f"devices: got {P}, but JAX has {len(there)}, expected as many at most")
    types = lambda shape: (AxisType.Auto,) * len(shape)
    made = lambda names, *shape: Mesh(
        np.array(there[: np.prod(shape)]).reshape(shape), names, axis_types=types(shape)
    )
    one, line, square = made(("sp",), 1), made(("sp",), P), made(("ring", "head"), P // 2, 2)
    every = {
        "dense": Way("dense", one),
        "blockwise": Way("blockwise", one),
        "jax.nn": Way("jax.nn", one),
        "ring contiguous": Way(Ring("sp"), line, cost=lambda a: costs.ring(a, P)),
        "ring zigzag": Way(Ring("sp", "zigzag"), line, cost=lambda a: costs.ring(a, P, "zigzag")),
        "ring striped": Way(Ring("sp", "striped"), line),
        "ulysses": Way(Ulysses("sp"), line, P, lambda a: costs.ulysses(a, P)),
        "usp zigzag": Way(
            USP("ring", "head", "zigzag"), square, 2, lambda a: costs.usp(a, P // 2, 2, "zigzag")
        ),
        "all-gather zigzag": Way(
            AllGather("sp", "zigzag"), line, cost=lambda a: costs.allgather(a, P, "zigzag")
        ),
    }
    return lab.choose("ways", config.ways, every)


# --------------------------------------------------------------------------------------- one cell


def inputs(config: Config, sizes: Sizes) -> Arrays:
    """q, k, v, and the gradient that comes back to the output."""
    T, N, K = sizes
    draw = np.random.default_rng(T + N).standard_normal
    return tuple(draw((1, T, n, config.width)).astype(np.float32) for n in (N, K, K, N))


def exact(arrays: Arrays, allowed: np.ndarray) -> Arrays:
    """The output and the gradients of q, k, v in float64, a head at a time, from the definition."""

    def head(q, k, v):
        scores = jnp.where(allowed, q @ k.T / np.sqrt(q.shape[1]), -jnp.inf)
        return jax.nn.softmax(scores, axis=1) @ v

    def both(q, k, v, d):
        out, pull = jax.vjp(head, q, k, v)
        return out, *pull(d)

    q, k, v, d = (x[0].astype(np.float64) for x in arrays)
    found = tuple(map(np.zeros_like, (d, q, k, v)))
    group = q.shape[1] // k.shape[1]
    with jax.enable_x64():
        run = jax.jit(both)
        for n in range(q.shape[1]):
            g = n // group
            parts = run(q[:, n], k[:, g], v[:, g], d[:, n])
            for total, part, place in zip(found, parts, (n, n, g, g), strict=True):
                total[:, place] += part
    return tuple(x[None] for x in found)


def difference(got: jax.Array | np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(np.asarray(got, np.float64) - want).max() / max(1, np.abs(want).max()))


def program(fn: Callable[..., jax.Array], mode: str) -> Callable[..., tuple[jax.Array, ...]]:
    """(q, k, v, d) -> the output, and in mode BOTH the gradients of q, k, v."""

    def both(q, k, v, d):
        out, pull = jax.vjp(fn, q, k, v)
        return out, *pull(d)

    return both if mode == BOTH else lambda q, k, v, d: (fn(q, k, v),)


@dataclass(eq=False)
class Result:
    """Measures by (mask, way, setting), and the reasons of those that were refused."""

    cells: dict[Key, dict[str, float]] = field(default_factory=dict)
    reasons: dict[Key, str] = field(default_factory=dict)


def title(sizes: Sizes) -> str:
    return "{} {}/{}".format(*sizes)


def attention_of(config: Config, pattern: str, sizes: Sizes) -> costs.Attention | None:
    """The sizes as the formulas take them, for the masks that they cover."""
    if pattern not in COVERED:
        return None
    (T, N, K), H, window = sizes, config.width, keys_seen(sizes[0])
    return costs.Attention(1, T, T, N, K, H, H, bytes=4, mask=pattern, window=window)  # pyright: ignore


def lowered(
    config: Config, way: Way, pattern: str, sizes: Sizes, arrays: Arrays
) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
    """The arrays laid out on their devices, and a program a mode; ValueError says why not."""
    at, on = way.places(sizes[0]).reshape(-1), NamedSharding(way.mesh, way.split)
    args = tuple(jax.device_put(x[:, at], on) for x in arrays)
    fn = way.attend(pattern, PATTERNS[pattern](sizes[0]))
    return args, {mode: jax.jit(program(fn, mode)).lower(*args) for mode in config.modes}


def cell(
    config: Config, way: Way, pattern: str, sizes: Sizes, want: Arrays,
    args: tuple[jax.Array, ...], programs: dict[str, Any],
) -> tuple[dict[str, float], dict[str, Timed]]:  # fmt: skip
    """Everything but the time of one way, and what is to be timed."""
    (T, _, K), mask = sizes, PATTERNS[pattern](sizes[0])
    at, runs, errors = way.places(T), {}, []
    found: dict[str, float] = {"devices": way.mesh.size, "imbalance": imbalance(areas(mask, at, T))}
    for mode, lower in programs.items():
        compiled = lower.compile()
        errors += [
            difference(got, right[:, at.reshape(-1)])
            for got, right in zip(compiled(*args), want, strict=False)
        ]
        sent = traffic.sent(compiled.as_text())
        found[f"sent {mode}"] = sum(sent.values())
        found[f"temp {mode}"] = compiled.memory_analysis().temp_size_in_bytes
        if mode == FORWARD and not way.alone:
            heads = costs.ulysses_heads(K, way.heads) // way.heads
            of_keys = at.shape[1] * heads * 2 * config.width * 4
            found["hops"] = sent.get("collective-permute", 0) / of_keys
        runs[mode] = functools.partial(_wait, compiled, args)
    if way.cost and (a := attention_of(config, pattern, sizes)):
        cost = way.cost(a)
        found |= {f"formula {FORWARD}": cost.forward_bytes, f"formula {BOTH}": cost.bytes}
    return found | {"error": float(np.max(errors))}, runs  # a nan, if there is one


def _wait(compiled: Callable[..., Any], args: tuple[jax.Array, ...]) -> None:
    jax.block_until_ready(compiled(*args))


def run(config: Config) -> Result:
    """Measures everything; all ways of one mask and setting take turns."""
    result, found = Result(), ways(config)
    todo = list(itertools.product(config.settings, config.masks))
    for sizes, pattern in track(todo, "measuring", transient=True):
        (T, N, _), mask = sizes, PATTERNS[pattern](sizes[0])
        arrays = inputs(config, sizes)
        allowed = np.broadcast_to(np.asarray(mask.dense(T, T)), (T, T))
        pairs = {"pairs": int(row_counts(mask, T, T).sum()), "dense pairs": int(allowed.sum())}
        want, timed = exact(arrays, allowed), {}
        for name, way in found.items():
            key = (pattern, name, title(sizes))
            try:
                args, programs = lowered(config, way, pattern, sizes, arrays)
            except ValueError as error:
                result.reasons[key] = str(error)
                continue
            measured, runs = cell(config, way, pattern, sizes, want, args, programs)
            result.cells[key] = measured | pairs
            timed |= {f"{name} {mode}": each for mode, each in runs.items()}
        seconds = take_turns(timed, config.rounds)
        for name, mode in itertools.product(found, config.modes):
            if measured := result.cells.get((pattern, name, title(sizes))):
                flops = 4 * config.width * N * pairs["pairs"] * MODES[mode]
                measured[f"flops {mode}"] = flops
                measured[f"seconds {mode}"] = seconds[f"{name} {mode}"]
    return result


# ------------------------------------------------------------------------------- what it says

SCALES = {
    "32k tokens, 8 devices": Setting(context=2**15, devices=8),
    "128k tokens, 64 devices": Setting(context=2**17, inter_link=25e9),
    "1M tokens, 64 devices": Setting(inter_link=25e9),
    "1M tokens, 64 devices, 32 key heads": Setting(kv_heads=32, inter_link=25e9),
}  # 32 heads over 8 of width 128, bfloat16, 400 TFLOP/s, 200 GB/s in a node of 8 and 25 between


def predicted() -> dict[tuple[str, str], list[planning.Prediction]]:
    """What planning says, by scale and mask, without linear attention."""
    found = {}
    for (scale, setting), mask in itertools.product(SCALES.items(), COVERED):
        told = planning.predict(*replace(setting, mask=mask).parts())
        found[scale, mask] = [p for p in told if not p.strategy.startswith("lasp")]
    return found


def plain(strategy: str) -> str:
    """The name without the split of devices: 'usp 32 x 2 zigzag' is 'usp zigzag'."""
    return re.sub(r" \d+ x \d+", "", strategy)


def metrics(config: Config, result: Result) -> lab.Metrics:
    """A row for each mask, way and setting, forward + backward where that was measured."""
    table: lab.Metrics = {}
    mode, numbers = config.modes[-1], numbered(result)
    for sizes, pattern, name in itertools.product(config.settings, config.masks, ways(config)):
        key = (pattern, name, title(sizes))
        if key in result.reasons:
            table[", ".join(key)] = {"refused": numbers[result.reasons[key]]}
            continue
        x = result.cells[key]
        row = {
            "error (m)": x["error"], "ms (m)": 1e3 * x[f"seconds {mode}"],
            "GFLOP/s (m)": x[f"flops {mode}"] / x[f"seconds {mode}"] / 1e9,
            "sent kB (c)": x[f"sent {mode}"] / 1e3, "temp MB (c)": x[f"temp {mode}"] / 1e6,
            "GFLOP (f)": x[f"flops {mode}"] / 1e9, "imbalance (f)": x["imbalance"],
        }  # fmt: skip
        table[", ".join(key)] = row | ({"hops (c)": x["hops"]} if "hops" in x else {})
    return table


def numbered(result: Result) -> dict[str, int]:
    """The number of each reason."""
    return {reason: i for i, reason in enumerate(dict.fromkeys(result.reasons.values()), 1)}


def notes(result: Result) -> str:
    """The reasons of what was refused, and the predictions, as text."""
    lines = ["Refused:", *(f"  {i}  {reason}" for reason, i in numbered(result).items()), ""]
    lines += ["Predicted (f), not measured: ms of forward + backward of a layer, * the least."]
    found = predicted()
    for scale in SCALES:
        lines += ["", f"  {scale:<36}" + "".join(f"{mask:>26}" for mask in COVERED)]
        for row in zip(*(found[scale, mask] for mask in COVERED), strict=True):
            name = row[0].strategy.split(" ")[0] if " x " in row[0].strategy else row[0].strategy
            told = ""
            for mask, p in zip(COVERED, row, strict=True):
                star = "*" if p == planning.best(found[scale, mask]) else " "
                text = f"{p.strategy.removeprefix(name)} {1e3 * p.time:.4g}{star}"
                told += f"{'refused' if p.reason else text:>26}"
            lines.append(f"    {name:<34}{told}")
            lines += [f"      {row[0].reason}"] if row[0].reason else []
    return "\n".join(lines)


def compared(result: Result, pattern: str, at: str, measure: str, many: bool) -> dict[str, float]:
    """A measure by way, of those that ran with this mask and setting on one or many devices."""
    return {
        name: x[measure] for (p, name, where), x in result.cells.items()
        if (p, where) == (pattern, at) and (x["devices"] > 1) == many
    }  # fmt: skip


def dominators(config: Config, result: Result) -> list[str]:
    """Strategies that send least at every mask of some setting, of those that ran there."""
    found: list[str] = []
    for at in map(title, config.settings):
        least = []
        for pattern in config.masks:
            sent = compared(result, pattern, at, f"sent {config.modes[-1]}", many=True)
            least.append({name for name, bytes in sent.items() if bytes == min(sent.values())})
        found += sorted(set.intersection(*least))
    return found


def claims(config: Config, result: Result) -> list[Claim]:
    """The paper's checks and its claim, the worst of what was measured; masks left out are not."""
    told: list[Claim] = []

    def tell(what: str, paper: str, values: Iterable[float], criterion: Criterion) -> None:
        if found := list(values):
            worst = float(np.max(found))  # a nan, if there is one
            told.append(Claim(what, paper, lambda m: worst, criterion))

    cells, mode = result.cells, config.modes[-1]
    tell("largest error of all", "all agree", [x["error"] for x in cells.values()], below(1e-5))
    off = [abs(x["pairs"] / x["dense pairs"] - 1) for x in cells.values()]
    tell("FLOPs: pairs counted by tiles, off those of the dense mask", "equal", off, below(1e-12))
    area = [x["imbalance"] for (p, n, _), x in cells.items() if p == "causal" and "zigzag" in n]
    tell("causal, zigzag: imbalance", "equal area", area, between(0.999, 1.02))
    for each, criterion in ((FORWARD, between(0.999999, 1.000001)), (BOTH, between(0.5, 1.000001))):
        share = [x[f"sent {each}"] / x[f"formula {each}"] for x in cells.values()
                 if f"sent {each}" in x and f"formula {each}" in x]  # fmt: skip
        tell(f"{each}: bytes counted over those of the formula", "equal or less", share, criterion)
    if len(config.masks) > 1:
        dominant = [len(dominators(config, result))]
        tell("strategies that send least at all masks of a setting", "none", dominant, below(1))
    sent = [compared(result, "window", title(z), f"sent {mode}", True) for z in config.settings]
    shares = [mine / min(rest.values()) for rest in sent
              if (mine := rest.pop("ring contiguous", None)) and rest]  # fmt: skip
    what = "window: bytes of the contiguous ring over the least of the others"
    tell(what, "mask decides", shares, below(1))
    if len(config.masks) > 1:
        first = set()
        for sizes, pattern in itertools.product(config.settings, config.masks):
            times = compared(result, pattern, title(sizes), f"seconds {mode}", many=False)
            first |= {min(times, key=times.__getitem__)} if times else set()
        what = "one device: ways that are fastest at some mask and setting"
        tell(what, "mask decides", [len(first)], above(1))
    best = {at: p.strategy for at, found in predicted().items() if (p := planning.best(found))}
    differ = lambda name, groups: [
        float(np.mean([len({name(best[at]) for at in group}) > 1 for group in groups]))
    ]
    by_scale = [[(scale, mask) for mask in COVERED] for scale in SCALES]
    by_mask = [[(scale, mask) for scale in SCALES] for mask in COVERED]
    kind = lambda strategy: strategy.split()[0]
    for what, paper, name, groups, low in (
        ("scales where the mask decides strategy or layout", "mask decides", plain, by_scale, 0.5),
        ("scales where it decides between ring, usp, ...", "mask decides", kind, by_scale, 0),
        ("masks whose winner changes with the scale", "none wins always", plain, by_mask, 0.5),
    ):
        tell(f"predicted (f): share of {what}", paper, differ(name, groups), above(low))
    return told


def table(result: Result) -> str:
    """Every number of every mask, way and setting, and the reasons, as CSV."""
    names = list(dict.fromkeys(name for x in result.cells.values() for name in x))
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["mask", "way", "T N/K", *names, "reason"])
    rows.writerows([*key, *(x.get(name, "") for name in names), ""]
                   for key, x in result.cells.items())  # fmt: skip
    rows.writerows([*key, *([""] * len(names)), why] for key, why in result.reasons.items())
    return file.getvalue()


def maps(config: Config, result: Result) -> Iterator[tuple[str, Figure]]:
    """For each setting: bytes, imbalance, memory and speed of each way and mask."""
    mode, names = config.modes[-1], list(ways(config))
    panels = {
        "sent by a device, kB": lambda x: x[f"sent {mode}"] / 1e3,
        "max / mean of pairs": lambda x: x["imbalance"],
        "temporary memory of a device, MB": lambda x: x[f"temp {mode}"] / 1e6,
        "ms, of all devices sharing the cores": lambda x: 1e3 * x[f"seconds {mode}"],
    }
    for sizes in config.settings:
        figure = Figure(figsize=(13, 8.5), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
        for axes, (label, value) in zip(grid, panels.items(), strict=True):
            cells = [[result.cells.get((p, n, title(sizes))) for p in config.masks] for n in names]
            shown = np.array([[value(x) if x else np.nan for x in row] for row in cells])
            # the color tells the rank: one large number would hide how the others differ
            ranks = np.searchsorted(np.unique(shown[np.isfinite(shown)]), shown)
            colors = np.where(np.isnan(shown), np.nan, ranks)
            axes.imshow(colors, cmap="Blues", aspect="auto", vmax=1.7 * max(1, np.nanmax(colors)))
            for i, j in np.ndindex(shown.shape):
                text = "refused" if np.isnan(shown[i, j]) else plus_minus(float(shown[i, j]), 0, 1)
                axes.text(j, i, text, ha="center", va="center", fontsize=8)
            axes.set_xticks(range(len(config.masks)), config.masks, fontsize=8, rotation=20)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set_title(label, fontsize=10)
            axes.spines[:].set_visible(False)
        figure.suptitle(f"T N/K = {title(sizes)}, {mode}", fontsize=11)
        yield "maps_{}_{}_{}".format(*sizes), figure


def main(config: Config) -> None:
    """Measures, judges the claims, and writes tables and plots."""
    began = time.monotonic()
    distributed.virtual_devices(config.devices)
    folder = lab.results_folder(config.results)
    result = run(config)
    told = notes(result)
    write_atomically(folder / "table.csv", table(result).encode())
    console = Console(width=max(150, Console().width))  # the table is as wide
    lab.report(
        f"{__doc__}\n{told}", claims(config, result), [metrics(config, result)], config=config,
        folder=folder, seconds=time.monotonic() - began, figures=dict(maps(config, result)),
        console=console,
    )  # fmt: skip
    print(told)


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
