"""Training with tokens split over devices is training on one device, for any kind of layer.

    python -m experiments.parallel.long_context
    python -m experiments.parallel.long_context --processes 2    # two processes over loopback
    srun python -m experiments.parallel.long_context --processes cluster    # a process a task

  Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context",
      arXiv:2310.01889: exact attention, no approximation, over any number of devices.
  Sun et al. 2025, "LASP-2", arXiv:2502.07563: the same for linear attention and for hybrids.

TinyLM on bytes of text, tokens split over devices, 8 virtual ones where there is only a CPU.  Two
stacks: causal attention around a ring, and a hybrid, where layers of the gated delta rule (states
by LASP-2) and of attention in a window (around the ring) take turns.  "apart" is the same split
without any exchange: what would be lost if a strategy forgot something.  Tokens, targets and
positions are laid out once, in zigzag order; parameters and moments are split over the devices
between steps, and "parameters here" are those that a device keeps.

With `--processes cluster` the scheduler starts the processes and `jax.distributed.initialize()`
finds the others: under SLURM, Open MPI (`mpirun python -m ...`) and Kubernetes (an indexed job), on
all devices that they have, with gloo collectives on CPUs.  `results` is a folder that all see.  A
process that dies ends the run within seconds (on a cluster: half a minute).  The same command goes
on from the last checkpoint; with other `--devices` or `--processes` too.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from matplotlib.figure import Figure

from attnjax import lab, masks
from attnjax.lab import Claim, Need, above, below, distributed, of
from attnjax.nn import recipes
from attnjax.ops.linear_recurrent import gated_delta_net
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.parallel import LASP2, Ring, layout

PAPERS = (349,)

AXIS = "sp"
ALONE, SPLIT, APART = "one device", "split", "apart"
WHERE = {ALONE: ("blockwise", "chunked"), SPLIT: (Ring(AXIS, "zigzag"), LASP2(AXIS, "zigzag")),
         APART: ("blockwise", "chunked")}  # fmt: skip


@dataclass(frozen=True)
class Config(lab.Config):
    stacks: tuple[str, ...] = ("attention", "hybrid")
    devices: int | None = None  # default: 8 virtual ones on CPUs, or all accelerators
    processes: int | Literal["cluster"] = 1  # started here, or by a cluster
    seeds: int = 3
    steps: int = 100
    every: int = 50  # steps from one checkpoint to the next
    batch: int = 1  # sequences a step
    width: int = 64
    depth: int = 2
    heads: int = 4
    length: int = 1024  # bytes
    window: int = 128  # of the hybrid's attention
    learning_rate: float = 1e-3
    text: Path | None = None  # a file or a folder; default: Python's standard library
    results: Path = Path("results/long_context")

    def __post_init__(self):
        super().__post_init__()
        lab.choose("stacks", self.stacks, STACKS)
        devices = self.devices or 8
        if self.processes != "cluster" and devices % self.processes:
            raise lab.UserError(
                f"processes: got {self.processes}, expected a divisor of the {devices} devices"
            )
        if self.processes != "cluster" and self.length % (2 * devices):
            raise lab.UserError(
                f"length: got {self.length}, expected a multiple of {2 * devices}: two runs of "
                f"tokens for each of {devices} devices"
            )


def attention(c: Config, ring: Any, states: Any) -> tuple[lab.Mixer, ...]:
    return (functools.partial(multi_head_attention, mask=masks.causal, impl=ring),)


def hybrid(c: Config, ring: Any, states: Any) -> tuple[lab.Mixer, ...]:
    # conv=1: a convolution would need the tokens of the device before.
    delta = functools.partial(gated_delta_net, impl=states)
    near = functools.partial(multi_head_attention, mask=masks.window(c.window - 1), impl=ring)
    return replace(recipes.gated_delta_net, op=delta, conv=1), near


STACKS = {"attention": attention, "hybrid": hybrid}
QUICK = replace(Config(), seeds=1, steps=60, every=20, width=32, length=256, window=48)


def shares(graph: Any, total: int, params: Any, batch: tuple[Any, Any, Any]) -> jax.Array:
    """What the tokens here add to the mean loss over `total` tokens, in nats per byte."""
    tokens, targets, positions = batch
    logits, _ = nnx.merge(graph, params)(tokens, positions=positions)
    return lab.cross_entropy(logits, targets).sum() / total


class Stack:
    """A stack on one device, or split over several: its loss, its batches, its trained runs."""

    def __init__(self, c: Config, name: str, where: str, devices: list[Any]):
        self.c, self.name, self.where = c, name, where
        self.graph, _ = self.model(0)
        total = c.batch * c.length
        if where == ALONE:  # on each process's first device, by itself
            firsts = {d.process_index: d for d in reversed(devices)}
            self.mesh = Mesh(np.array([firsts[i] for i in sorted(firsts)]), (AXIS,))
            self.loss = functools.partial(shares, self.graph, total)
            self.parts, self.of_tokens = 1, ()
            self.sharding = distributed.everywhere(self.mesh)
            return
        self.mesh = Mesh(np.array(devices), (AXIS,))
        local = lambda params, batch: lax.psum(shares(self.graph, total, params, batch), AXIS)
        each = PartitionSpec(None, AXIS), PartitionSpec(None, AXIS), PartitionSpec(AXIS)
        self.loss = jax.shard_map(
            local, mesh=self.mesh, in_specs=(PartitionSpec(), each), out_specs=PartitionSpec(),
            check_vma=False,
        )  # fmt: skip
        self.parts, self.of_tokens = len(devices), (AXIS,)
        self.sharding = distributed.split_over(self.mesh)

    def model(self, seed: int) -> tuple[Any, Any]:
        """(graph, parameters on the host), which are those of one device wherever it runs."""
        c = self.c
        shape = lab.Shape(c.width, c.depth, c.heads, c.length)
        mixers = STACKS[self.name](c, *WHERE[self.where])
        graph, params = nnx.split(lab.TinyLM(shape, mixers, rngs=nnx.Rngs(seed)))
        return graph, jax.tree.map(np.asarray, params)

    def batch(self, text: lab.Text, seed: int, step: int) -> tuple[jax.Array, ...]:
        """(tokens, targets, positions) laid out on their devices."""
        drawn = lab.windows(text.train, self.c.length, self.c.batch, seed=seed, step=step)
        # The next byte of a device's last one is elsewhere, so targets are laid out as well.
        kind = "zigzag" if self.parts > 1 else "contiguous"
        laid = layout((drawn[:, :-1], drawn[:, 1:]), self.parts, kind)
        spread = functools.partial(distributed.spread, mesh=self.mesh)
        rows = [spread(x, spec=PartitionSpec(None, *self.of_tokens)) for x in laid.values]
        return (*rows, spread(laid.positions, spec=PartitionSpec(*self.of_tokens)))

    def train(self, text: lab.Text, seed: int, **options: Any) -> lab.Run:
        optimizer = lab.Optimizer(self.c.steps, self.c.learning_rate)
        batches = functools.partial(self.batch, text, seed)
        return lab.train(
            self.model(seed)[1], self.loss, batches, optimizer, every=self.c.every,
            sharding=self.sharding, **options,
        )  # fmt: skip


def rows_of(c: Config) -> Iterator[tuple[str, str, str]]:
    """(row, stack, where) in their order."""
    yield from ((f"{stack}: {where}", stack, where) for stack in c.stacks for where in WHERE)


def runs_of(c: Config, text: lab.Text) -> Path:
    """The folder of checkpoints; whatever does not change what is computed has no say in it."""
    same = replace(c, stacks=("attention",), devices=None, processes=1, seeds=1, every=1)
    key = lab.run_key(replace(same, results=Path()), text.digest)
    return c.results / "checkpoints" / key


@dataclass(frozen=True)
class Everywhere:
    """Trains every stack on one device, split, and apart; goes on where it was interrupted."""

    def __call__(self, c: Config, key: str, place: lab.Place) -> lab.Result:
        c = replace(c, steps=2) if place.effort == "smoke" else c
        devices, text = distributed.devices(c.devices, c.processes), lab.read_text(c.text)
        folder = runs_of(c, text)
        if jax.process_count() > 1:
            distributed.agree("text and settings", int(folder.name, 16))
        told = f"{len(devices)} devices ({devices[0].platform}), {jax.process_count()} process(es)"
        print(told, flush=True)
        result = lab.Result([{} for _ in range(c.seeds)])
        with lab.Bars() as bars:
            watches = {row: bars.add(row, c.steps, c.seeds) for row, *_ in rows_of(c)}
            for row, name, where in rows_of(c):
                stack = Stack(c, name, where, devices)
                for seed in range(c.seeds):
                    run = f"{row}, seed {seed}"
                    watch = distributed.noted(run, watches[row](seed))
                    trained = stack.train(text, seed, folder=folder / lab.slug(run), watch=watch)
                    self.judge(result, row, name, seed, trained)
        return result

    def judge(self, result: lab.Result, row: str, name: str, seed: int, run: lab.Run) -> None:
        losses = run.losses.astype(np.float64)
        where = row.partition(": ")[2]
        result.losses.setdefault(name, {}).setdefault(where, []).append(losses)
        leaves = jax.tree.leaves(run.params)
        here = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
        result.parameters[row] = sum(leaf.size for leaf in leaves)
        found = {"first loss": losses[0], "last loss": losses[-1], "parameters here": here}
        if where != ALONE:
            apart = np.abs(losses - result.losses[name][ALONE][seed])
            found["largest difference"] = apart.max()
        result.seeds[seed][row] = {name: float(x) for name, x in found.items()}

    def names(self, c: Config) -> lab.Names:
        told = ["first loss", "last loss", "parameters here"]
        more = lambda where: [] if where == ALONE else ["largest difference"]
        return {row: [*told, *more(where)] for row, _, where in rows_of(c)}


def claims(c: Config) -> tuple[Claim, ...]:
    told = []
    for stack in c.stacks:
        loss = lambda when, stack=stack: of(f"{stack}: {ALONE}", f"{when} loss")
        off = lambda where, stack=stack: of(f"{stack}: {where}", "largest difference")
        learns = Need("it learns", loss("first") - loss("last"), above(0.5))
        told.append(
            Claim(f"{stack}: each step's loss is one device's, beside that without exchange",
                  "exact", off(SPLIT) / off(APART), below(0.01), (learns,))
        )  # fmt: skip
    return tuple(told)


def differences(c: Config, result: lab.Result) -> dict[str, Figure]:
    """How far the losses of many devices and of one are apart, step by step, of the first seed."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, stack in zip(lab.COLORS, c.stacks, strict=False):
        for where, style in ((SPLIT, "-"), (APART, ":")):
            runs = result.losses[stack]
            apart = np.abs(runs[where][0] - runs[ALONE][0])
            steps = np.arange(1, len(apart) + 1)
            label = f"{stack}, {where}"
            axes.plot(steps, np.maximum(apart, 1e-8), style, color=color, lw=1.2, label=label)
    axes.set(yscale="log", xlabel="training step", ylabel="|loss - one device's| (nats per byte)")
    axes.legend(frameon=False, fontsize=9)
    return {"differences": figure}


def start(c: Config, run: Callable[[], object]) -> None:
    advice = functools.partial(distributed.advice, runs_of(c, lab.read_text(c.text)))
    distributed.across(c.processes, c.devices or 8, run, advice)


STUDY = lab.Study(__doc__, Config(), QUICK, Everywhere(), claims, differences, start)

if __name__ == "__main__":
    STUDY.main()
