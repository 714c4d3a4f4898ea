"""Which way to run attention over eight devices is best depends on the mask.

    python -m experiments.parallel.strategies

  "Long-Context Attention Benchmark: From Kernel Efficiency to Distributed Context Parallelism",
      2025: the mask largely decides which kernel or context-parallel strategy wins, and none wins
      for all masks and lengths (there on up to 96 GPUs).

Every mask, for every setting T N/K (tokens, query heads, key heads), in float32: dense, blockwise
and jax.nn on one device, then the strategies of attnjax.parallel over tokens already laid out, on
as many devices as `devices` says, virtual ones where there is only a CPU.

  measured   "ms" round by round; "GFLOP/s" of the FLOPs of allowed pairs, all devices together
  counted    in the compiled program of a device: "sent kB", "hops" that keys make, "temp MB"
  formula    "imbalance" = max / mean over devices of the pairs that their queries may see

Virtual devices share the cores of one machine: their "ms" is the work of all of them and what
moving it costs, in no case the time that eight devices would take, which `python -m attnjax plan`
predicts.  What cannot run is nan; refused.txt says why.  table.csv has every number.
"""

import csv
import io
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from rich.progress import track

from attnjax import attend, lab, masks
from attnjax.lab import Claim, above, below, distributed, least, of, plots
from attnjax.lab.files import write_atomically
from attnjax.lab.timing import BOTH, FORWARD, Timed, remembered, take_turns
from attnjax.parallel import USP, AllGather, Ring, Ulysses
from attnjax.parallel.layouts import order
from attnjax.parallel.model import costs, traffic
from attnjax.parallel.model.balance import areas, imbalance, random_documents, row_counts

PAPERS = (53,)

MODES = {FORWARD: 1.0, BOTH: 1 + costs.BACKWARD_FLOPS}  # FLOPs over those of forward
Sizes = tuple[int, int, int]  # T, N, K


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


PATTERNS: dict[str, Callable[[int], masks.Mask]] = {
    "full": lambda T: masks.everything,
    "causal": lambda T: masks.causal,
    "window": lambda T: masks.causal & masks.window(T // 16 - 1),
    "documents": _documents,
    "prefix-LM": lambda T: masks.causal | masks.prefix(T // 4),
    "shared question": _shared_question,
    "block-sparse": _block_sparse,
}

# --------------------------------------------------------------------- the ways to run attention


def jax_nn(pattern: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """jax.nn's attention, for the masks that it has names for."""
    options: dict[str, dict[str, Any]] = {
        "full": {}, "causal": {"is_causal": True},
        "window": {"is_causal": True, "local_window_size": (q.shape[1] // 16 - 1, 0)},
    }  # fmt: skip
    if pattern not in options:
        raise ValueError("jax.nn names full, causal and window; others are T x S booleans to it")
    return jax.nn.dot_product_attention(q, k, v, **options[pattern])


@dataclass(frozen=True)
class Way:
    """An implementation of `attend` (or "jax.nn"), and how many of the devices share heads."""

    impl: Any
    shape: Callable[[int], dict[str, int]] = lambda P: {"sp": P}  # of the mesh
    heads: Callable[[int], int] = lambda P: 1  # neighbors, each with the queries of all of them

    @property
    def alone(self) -> bool:
        return isinstance(self.impl, str)

    @property
    def split(self) -> PartitionSpec:
        return PartitionSpec() if self.alone else PartitionSpec(None, self.impl.sharding.axes)

    def mesh(self, P: int) -> Mesh:
        shape = {"sp": 1} if self.alone else self.shape(P)
        there = jax.devices() if len(jax.devices()) >= P else jax.devices("cpu")
        if len(there) < P:
            raise lab.UserError(f"devices: got {P}, but JAX has {len(there)}, expected fewer")
        grid = np.array(there[: np.prod(list(shape.values()))]).reshape(*shape.values())
        return Mesh(grid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))

    def places(self, P: int, T: int) -> np.ndarray:
        """The position of each token of each part of the layout, (parts, T/parts)."""
        parts = 1 if self.alone else P // self.heads(P)
        kind = "contiguous" if self.alone else self.impl.sharding.layout
        return order(kind, parts, T).reshape(parts, -1)

    def attend(self, pattern: str, T: int, mesh: Mesh) -> Callable[..., jax.Array]:
        """Attention over whole arrays whose tokens are laid out."""
        if self.impl == "jax.nn":
            return partial(jax_nn, pattern)
        fn = lambda q, k, v: attend(q, k, v, mask=PATTERNS[pattern](T), impl=self.impl)
        if self.alone:
            return fn
        return jax.shard_map(
            fn, mesh=mesh, in_specs=self.split, out_specs=self.split, check_vma=False
        )


WAYS = {
    "dense": Way("dense"),
    "blockwise": Way("blockwise"),
    "jax.nn": Way("jax.nn"),
    "ring contiguous": Way(Ring("sp")),
    "ring zigzag": Way(Ring("sp", "zigzag")),
    "ring striped": Way(Ring("sp", "striped")),
    "ulysses": Way(Ulysses("sp"), heads=lambda P: P),
    "usp zigzag": Way(
        USP("ring", "head", "zigzag"), lambda P: {"ring": P // 2, "head": 2}, lambda P: 2
    ),
    "all-gather zigzag": Way(AllGather("sp", "zigzag")),
}


@dataclass(frozen=True)
class Config(lab.TimingConfig):
    masks: tuple[str, ...] = tuple(PATTERNS)
    ways: tuple[str, ...] = tuple(WAYS)
    settings: tuple[Sizes, ...] = ((1024, 8, 8),)
    modes: tuple[str, ...] = tuple(MODES)
    devices: int = 8
    width: int = 64  # of a head
    results: Path = Path("results/strategies")

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("masks", PATTERNS), ("modes", MODES), ("ways", WAYS)):
            lab.choose(name, getattr(self, name), known)
        if self.devices % 2 or self.devices < 4:
            raise lab.UserError(f"devices: got {self.devices}, expected an even number from 4 on")
        if not self.settings:
            raise lab.UserError("settings: got none, expected (T, N, K) of one at least")
        for T, N, K in self.settings:
            if min(T, N, K) < 1 or N % K or T % 32:
                raise lab.UserError(
                    f"settings: got {T} {N} {K}, expected T a multiple of 32, and of N by K"
                )


QUICK = replace(
    Config(), masks=("full", "window", "causal"), settings=((512, 8, 8),), modes=(FORWARD,),
    ways=("dense", "blockwise", "ring contiguous", "ulysses"), rounds=3,
)  # fmt: skip

# ------------------------------------------------------------------------------------------ a run


def program(fn: Callable[..., jax.Array], mode: str) -> Callable[..., Any]:
    """(q, k, v, d) -> the output, and in mode BOTH the gradients of q, k, v."""

    def both(q, k, v, d):
        out, pull = jax.vjp(fn, q, k, v)
        return out, *pull(d)

    return both if mode == BOTH else lambda q, k, v, d: fn(q, k, v)


def counted(
    c: Config, name: str, pattern: str, sizes: Sizes
) -> tuple[dict[str, float], dict[str, Timed]]:
    """Everything but the time, and what is to be timed; ValueError says why it cannot run."""
    (T, N, K), way, mask = sizes, WAYS[name], PATTERNS[pattern](sizes[0])
    draw, mesh = np.random.default_rng(T + N).standard_normal, way.mesh(c.devices)
    at, on = way.places(c.devices, T), NamedSharding(mesh, way.split)
    drawn = (draw((1, T, n, c.width), np.float32) for n in (N, K, K, N))
    args = [jax.device_put(x, on) for x in drawn]
    found, runs = {"imbalance": imbalance(areas(mask, at, T)), "hops": 0.0}, {}
    for mode in c.modes:
        fn = program(way.attend(pattern, T, mesh), mode)
        compiled: Any = jax.jit(fn).lower(*args).compile()
        sent = traffic.sent(compiled.as_text())
        found[f"sent kB {mode}"] = sum(sent.values()) / 1e3
        found[f"temp MB {mode}"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
        if mode == FORWARD and not way.alone:
            share = way.heads(c.devices)
            of_keys = at.shape[1] * costs.ulysses_heads(K, share) // share * 2 * c.width * 4
            found["hops"] = sent.get("collective-permute", 0) / of_keys
        runs[mode] = lambda compiled=compiled: jax.block_until_ready(compiled(*args))
    return found, runs


def measured(c: Config, pattern: str, sizes: Sizes) -> dict[str, Any]:
    """All ways of one mask and setting: what is counted, why not, and seconds of each round."""
    cells: dict[str, dict[str, float]] = {}
    reasons: dict[str, str] = {}
    runs: dict[str, Timed] = {}
    for name in c.ways:
        try:
            cells[name], timed = counted(c, name, pattern, sizes)
        except ValueError as error:
            reasons[name] = str(error)
        else:
            runs |= {f"{name} {mode}": run for mode, run in timed.items()}
    return {"cells": cells, "reasons": reasons, "seconds": take_turns(runs, c.rounds)}


def row_of(pattern: str, sizes: Sizes, way: str) -> str:
    return "{} {} {}/{}: {}".format(pattern, *sizes, way)


def measures(c: Config) -> list[str]:
    kinds = ("ms", "GFLOP/s", "sent kB", "temp MB")
    return [f"{kind} {mode}" for kind in kinds for mode in c.modes] + ["hops", "imbalance"]


@dataclass(frozen=True)
class Strategies:
    """Measures every way for every mask and setting; goes on where it was interrupted."""

    def __call__(self, c: Config, key: str, place: lab.Place) -> lab.Result:
        result, told = lab.Result([{} for _ in range(c.rounds)]), []
        todo = list(itertools.product(c.settings, c.masks))
        for index, (sizes, pattern) in enumerate(track(todo, "measuring", transient=True)):
            kept = place.runs(key) / f"{index}-{c.rounds}.json"
            found = remembered(kept, partial(measured, c, pattern, sizes))
            for name in c.ways:
                row = row_of(pattern, sizes, name)
                for index, metrics in enumerate(result.seeds):
                    values = dict(self.values(c, pattern, sizes, name, found, index))
                    metrics[row] = {m: values.get(m, np.nan) for m in measures(c)}
            told += [f"{row_of(pattern, sizes, n)}: {why}" for n, why in found["reasons"].items()]
        write_atomically(place.folder / "refused.txt", "\n".join([*told, ""]).encode())
        write_atomically(place.folder / "table.csv", table(result).encode())
        return result

    def values(
        self, c: Config, pattern: str, sizes: Sizes, name: str, found: dict[str, Any], index: int
    ) -> Iterator[tuple[str, float]]:
        """The measures of one way in one round; none where it was refused."""
        yield from found["cells"].get(name, {}).items()
        T, N, _ = sizes
        flops = 4 * c.width * N * int(row_counts(PATTERNS[pattern](T), T, T).sum())
        for mode in c.modes if name in found["cells"] else ():
            seconds = found["seconds"][f"{name} {mode}"][index]
            yield f"ms {mode}", 1e3 * seconds
            yield f"GFLOP/s {mode}", flops * MODES[mode] / seconds / 1e9

    def names(self, c: Config) -> lab.Names:
        cells = itertools.product(c.settings, c.masks, c.ways)
        return {row_of(pattern, sizes, way): measures(c) for sizes, pattern, way in cells}


def table(result: lab.Result) -> str:
    """Every number as CSV, the medians of rounds."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    first = result.seeds[0]
    rows.writerow(["mask, T N/K", "way", *next(iter(first.values()))])
    for row, values in first.items():
        median = lambda m, row=row: statistics.median(each[row][m] for each in result.seeds)
        rows.writerow([*row.split(": "), *map(median, values)])
    return file.getvalue()


# ------------------------------------------------------------------------------- what it says


def claims(c: Config) -> tuple[Claim, ...]:
    return tuple(claim for sizes in c.settings for claim in claims_at(c, sizes))


def claims_at(c: Config, sizes: Sizes) -> Iterator[Claim]:
    """Of the masks and ways chosen: who sends least, and by how much a mask helps a kernel."""
    measure = lambda kind: lambda pattern, way: of(row_of(pattern, sizes, way), kind)
    at = "T N/K = {} {}/{}".format(*sizes)
    sent, ms = measure(f"sent kB {c.modes[0]}"), measure(f"ms {c.modes[-1]}")
    for pattern, best in (("window", "ring contiguous"), ("causal", "ulysses")):
        others = [way for way in c.ways if way != best and not WAYS[way].alone]
        # Where heads cannot be shared, Ulysses does not run.
        if pattern in c.masks and best in c.ways and others and sizes[1] % c.devices == 0:
            share = sent(pattern, best) / least(*(sent(pattern, way) for way in others))
            says = f"{at}, {pattern}: {best} sends least of all strategies"
            yield Claim(says, "none wins for all", share, below(0.8), counted=True)
    if {"full", "window"} <= {*c.masks} and {"dense", "blockwise"} <= {*c.ways}:
        gain = lambda pattern: ms(pattern, "dense") / ms(pattern, "blockwise")
        says = f"{at}, one device: tiles gain twice as much under a window as without a mask"
        yield Claim(says, "the mask decides", gain("window") / gain("full"), above(2))


def maps(c: Config, result: lab.Result) -> dict[str, Figure]:
    """For each setting: bytes, imbalance, memory and time of each way and mask."""
    mode = c.modes[-1]
    panels = {
        "sent by a device, kB": f"sent kB {mode}",
        "max / mean of pairs": "imbalance",
        "temporary memory of a device, MB": f"temp MB {mode}",
        "ms, of all devices sharing the cores": f"ms {mode}",
    }
    median = lambda row, m: statistics.median(each[row][m] for each in result.seeds)
    figures = {}
    for sizes in c.settings:
        figure = Figure(figsize=(13, 8.5), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
        for axes, (label, measure) in zip(grid, panels.items(), strict=True):
            shown = np.array(
                [[median(row_of(p, sizes, way), measure) for p in c.masks] for way in c.ways]
            )
            plots.numbers(axes, shown, c.ways, c.masks)
            axes.set_title(label, fontsize=10)
        figure.suptitle("T N/K = {} {}/{}, {}".format(*sizes, mode), fontsize=11)
        figures["maps-{}-{}-{}".format(*sizes)] = figure
    return figures


def start(c: Config, run: Callable[[], object]) -> None:
    distributed.across(1, c.devices, run)


STUDY = lab.Study(__doc__, Config(), QUICK, Strategies(), claims, maps, start)

if __name__ == "__main__":
    STUDY.main()
