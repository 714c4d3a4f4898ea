"""Long context: training over many devices ends with the loss of one.

    python -m experiments.long_context                  # two CPU cores: 5 minutes
    python -m experiments.long_context --quick          # two CPU cores: under a minute
    python -m experiments.long_context --processes 2    # two processes over loopback: 3 times that
    srun python -m experiments.long_context --processes cluster    # a process a task

TinyLM on bytes of Python's standard library, tokens split over devices, 8 virtual ones where there
is only a CPU.  Two stacks, each beside the same on one device: causal attention around a ring, and
a hybrid, where layers of the gated delta rule (states by LASP-2) and of attention in a window
(around the ring) take turns.  Tokens, targets and positions are laid out once, in zigzag order;
parameters and moments are split over the devices between steps.

  Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context",
      arXiv:2310.01889: exact attention, no approximation, over any number of devices.
  Sun et al. 2025, "LASP-2", arXiv:2502.07563: the same for linear attention and for hybrids.

Of several processes every one trains the models of one device by itself, and all together the
others; the first writes the results.  With `--processes 2` this command starts them, on CPUs, with
gloo collectives.  With `--processes cluster` the scheduler starts them and
`jax.distributed.initialize()` finds the others: under SLURM, Open MPI (`mpirun python -m ...`) and
Kubernetes (an indexed job), on all devices that they have.  `results` is a folder that all see.

A process that dies ends the run within seconds (on a cluster: half a minute), and the command says
which one, of what, and where it will go on.  The same command then goes on from the last
checkpoint; with other `--devices` or `--processes` too, as parts are put together anew.

Seen at this size: losses of attention stay within 1e-6 of one device's, step for step, and those of
the hybrid within 1e-4.  At twice the learning rate a loss spike of the hybrid amplifies rounding a
thousandfold within ten steps, to 5e-3; two chunk sizes on one device then differ by as much.
"""

import functools
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
from attnjax.lab import Claim, above, below, checkpoint, distributed
from attnjax.lab.progress import Watch, unwatched
from attnjax.nn import recipes
from attnjax.ops.linear_recurrent import gated_delta_net
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.parallel import LASP2, Ring, layout

PAPERS = (349,)

AXIS = "sp"

Devices = list[Any]  # of jax.Device


@dataclass(frozen=True)
class Config:
    """Sizes of the model, of the training and of the machine; the defaults are the full run."""

    stacks: tuple[str, ...] = ("attention", "hybrid")
    devices: int | None = None  # default: 8 virtual ones on CPUs, or all accelerators
    processes: int | Literal["cluster"] = 1  # started here, or by a cluster
    seed: int = 0
    steps: int = 200
    every: int = 50  # steps from one checkpoint to the next
    batch: int = 1  # sequences a step
    width: int = 64
    depth: int = 4
    heads: int = 4
    length: int = 2048  # bytes
    window: int = 256  # of the hybrid's attention
    learning_rate: float = 1e-3
    text: Path | None = None  # a file or a folder; default: Python's standard library
    results: Path = Path("results/long_context")

    def __post_init__(self):
        lab.positive(self, "steps every batch width depth heads length window")
        if self.devices is not None:
            lab.positive(self, "devices")
        if self.processes != "cluster":
            lab.positive(self, "processes")
            if (self.devices or 8) % self.processes:
                raise lab.UserError(
                    f"processes: got {self.processes}, expected a divisor of the "
                    f"{self.devices or 8} devices"
                )


QUICK = replace(Config(), steps=60, every=20, depth=2, width=32, length=256, window=48,
                learning_rate=2e-3)  # fmt: skip

Mixers = Callable[[Config, Any, Any], tuple[lab.Mixer, ...]]


def attention(config: Config, ring: Any, states: Any) -> tuple[lab.Mixer, ...]:
    return (functools.partial(multi_head_attention, mask=masks.causal, impl=ring),)


def hybrid(config: Config, ring: Any, states: Any) -> tuple[lab.Mixer, ...]:
    # conv=1: a convolution would need the tokens of the device before.
    delta = functools.partial(gated_delta_net, impl=states)
    near = masks.window(config.window - 1)
    return (
        replace(recipes.gated_delta_net, op=delta, conv=1),
        functools.partial(multi_head_attention, mask=near, impl=ring),
    )


STACKS: dict[str, Mixers] = {"attention": attention, "hybrid": hybrid}
ALONE, SPLIT = "one device", "split"


@dataclass(eq=False)
class Result:
    """Metrics, and the loss of every step, by run."""

    metrics: lab.Metrics
    losses: dict[str, np.ndarray]


def title(stack: str, where: str) -> str:
    return f"{stack}, {where}"


def runs_of(config: Config) -> list[tuple[str, str]]:
    """(stack, where) of each run, in their order."""
    return [(s, w) for s in lab.choose("stacks", config.stacks, STACKS) for w in (ALONE, SPLIT)]


def checkpoints(config: Config, text: lab.Text) -> dict[str, Path]:
    """The folder of each run; whatever does not change what is computed has no say in it."""
    same = replace(config, stacks=(), devices=None, processes=1, every=1, results=Path())
    folder = config.results / "checkpoints" / lab.run_key(same, text.digest)
    return {title(*run): folder / "-".join(run).replace(" ", "_") for run in runs_of(config)}


def devices_of(config: Config) -> Devices:
    """The devices to split over; all that a cluster has."""
    there = jax.devices()
    usual = 8 if there[0].platform == "cpu" and config.processes != "cluster" else len(there)
    wanted = config.devices or usual
    if wanted > len(there) or (config.processes == "cluster" and wanted != len(there)):
        kind = there[0].platform
        raise lab.UserError(
            f"devices: got {wanted}, but JAX has {len(there)} ({kind}); expected as many at most, "
            f"and all of a cluster's (virtual ones: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES={wanted})"
        )
    return there[:wanted]


def model(config: Config, stack: str, ring: Any, states: Any) -> tuple[Any, Any]:
    """(graph, parameters on the host) of a TinyLM; the parameters are those of one device."""
    shape = lab.Shape(config.width, config.depth, config.heads, config.length)
    mixers = STACKS[stack](config, ring, states)
    graph, params = nnx.split(lab.TinyLM(shape, mixers, rngs=nnx.Rngs(config.seed)))
    return graph, jax.tree.map(np.asarray, params)


def shares(graph: Any, total: int, params: Any, batch: tuple[Any, Any, Any]) -> jax.Array:
    """What the tokens here add to the mean loss over `total` tokens, in nats per byte."""
    tokens, targets, positions = batch
    logits, _ = nnx.merge(graph, params)(tokens, positions=positions)
    return lab.cross_entropy(logits, targets).sum() / total


def split_loss(graph: Any, total: int, mesh: Mesh) -> Callable[[Any, Any], jax.Array]:
    """The mean loss of a batch whose tokens are split over the mesh."""

    def local(params: Any, batch: Any) -> jax.Array:
        return lax.psum(shares(graph, total, params, batch), AXIS)

    each = PartitionSpec(None, AXIS), PartitionSpec(None, AXIS), PartitionSpec(AXIS)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), each),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


def train(
    config: Config,
    text: lab.Text,
    stack: str,
    where: str,
    devices: Devices,
    *,
    folder: Path | None = None,
    watch: Watch = unwatched,
) -> lab.Run:
    """Trains a stack split over `devices`, or on each process's first, by itself."""
    if where == SPLIT:
        mesh = Mesh(np.array(devices), (AXIS,))
        graph, params = model(config, stack, Ring(AXIS, "zigzag"), LASP2(AXIS, "zigzag"))
        loss = split_loss(graph, config.batch * config.length, mesh)
        parts, of_tokens, sharding = mesh.size, (AXIS,), distributed.split_over(mesh)
    else:
        firsts = {d.process_index: d for d in reversed(devices)}
        mesh = Mesh(np.array([firsts[i] for i in sorted(firsts)]), (AXIS,))
        graph, params = model(config, stack, "blockwise", "chunked")
        loss = functools.partial(shares, graph, config.batch * config.length)
        parts, of_tokens, sharding = 1, (), distributed.everywhere(mesh)

    def batches(step: int) -> tuple[jax.Array, ...]:
        drawn = lab.windows(text.train, config.length, config.batch, seed=config.seed, step=step)
        # The next byte of a device's last one is elsewhere, so targets are laid out as well.
        laid = layout((drawn[:, :-1], drawn[:, 1:]), parts, "zigzag" if parts > 1 else "contiguous")
        spread = functools.partial(distributed.spread, mesh=mesh)
        rows = [spread(x, spec=PartitionSpec(None, *of_tokens)) for x in laid.values]
        return (*rows, spread(laid.positions, spec=PartitionSpec(*of_tokens)))

    optimizer = lab.Optimizer(config.steps, config.learning_rate)
    return lab.train(
        params, loss, batches, optimizer,
        folder=folder, every=config.every, watch=watch, sharding=sharding,
    )  # fmt: skip


def prepare(config: Config, devices: int) -> tuple[lab.Text, dict[str, Path]]:
    """The text, and the folder of each run's checkpoints; refuses what cannot be run."""
    runs_of(config)
    if config.length % (2 * devices):
        raise lab.UserError(
            f"length: got {config.length}, expected a multiple of {2 * devices}: two runs of "
            f"tokens for each of {devices} devices"
        )
    lab.results_folder(config.results)
    text = lab.read_text(config.text)
    return text, checkpoints(config, text)


def run(config: Config) -> Result:
    """Trains the stacks on one device and on many; goes on where it was interrupted."""
    devices = devices_of(config)
    text, folders = prepare(config, len(devices))
    if jax.process_count() > 1:
        distributed.agree("text and settings", int(next(iter(folders.values())).parent.name, 16))
    processes = jax.process_count()
    print(f"{len(devices)} devices ({devices[0].platform}), {processes} process(es)", flush=True)
    result = Result({}, {})
    with lab.Bars() as bars:
        watches = {name: bars.add(name, config.steps)(0) for name in folders}
        for stack, where in runs_of(config):
            name = title(stack, where)
            if (begun := checkpoint.newest(folders[name])) is not None:
                bars.console.print(f"{name}: goes on from step {begun}", highlight=False)
            trained = train(
                config, text, stack, where, devices,
                folder=folders[name], watch=noted(name, watches[name]),
            )  # fmt: skip
            result.losses[name] = trained.losses.astype(np.float64)
            first, last = result.losses[name][[0, -1]]
            result.metrics[name] = {
                "first loss": float(first),
                "last loss": float(last),
                "parameters here": parameters_here(trained.params),
            }
    for stack in config.stacks:
        apart = np.abs(result.losses[title(stack, SPLIT)] - result.losses[title(stack, ALONE)])
        result.metrics[title(stack, SPLIT)] |= {
            "largest difference": float(apart.max()),
            "last difference": float(apart[-1]),
            "devices": float(len(devices)),
        }
    return result


def noted(name: str, watch: Watch) -> Watch:
    """The watch, which also leaves word of where the run is."""

    def report(step: int, loss: float, rate: float) -> None:
        distributed.note(f"after step {step} of '{name}'")
        watch(step, loss, rate)

    return report


def parameters_here(params: Any) -> float:
    """How many parameters one device keeps."""
    return float(sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params)))


def claims_of(stack: str) -> tuple[Claim, ...]:
    """Equal but for float32 rounding, which training amplifies from step to step."""
    alone, split = title(stack, ALONE), title(stack, SPLIT)
    return (
        Claim(f"{stack}: largest difference of a step's loss to one device's", "exact",
              lambda m: m[split]["largest difference"], below(1e-4)),
        Claim(f"{stack}: difference of the last loss", "exact",
              lambda m: m[split]["last difference"], below(1e-4)),
        Claim(f"{stack}: how far the loss fell", "trains",
              lambda m: m[split]["first loss"] - m[split]["last loss"], above(1)),
        Claim(f"{stack}: parameters that a device keeps, times devices, of all", "1",
              lambda m: m[split]["parameters here"] * m[split]["devices"]
              / m[alone]["parameters here"], below(1.2)),
    )  # fmt: skip


CLAIMS = {stack: claims_of(stack) for stack in STACKS}


def differences(losses: Mapping[str, np.ndarray], stacks: Sequence[str]) -> Figure:
    """How far the losses of many devices and of one are apart, step by step."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, stack in zip(lab.COLORS, stacks, strict=False):
        apart = np.abs(losses[title(stack, SPLIT)] - losses[title(stack, ALONE)])
        steps = np.arange(1, len(apart) + 1)
        axes.plot(steps, np.maximum(apart, 1e-8), color=color, linewidth=1.2, label=stack)
    axes.set(yscale="log", xlabel="training step", ylabel="|loss - one device's| (nats per byte)")
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def advice(folders: Mapping[str, Path]) -> str:
    """What to do when a process died, and from where the run will go on."""
    found = {name: checkpoint.newest(folder) for name, folder in folders.items()}
    begun = [(name, step) for name, step in found.items() if step is not None]
    if not begun:
        return "No checkpoint was written yet: the same command starts again."
    name, step = begun[-1]
    return f"Start the same command again to go on from step {step} of '{name}'."


def work(config: Config) -> None:
    """Runs, judges the claims, and writes tables and plots; then checkpoints are not needed."""
    began = time.monotonic()
    result = run(config)
    if jax.process_index() > 0:
        return
    figures = {
        "loss": lab.loss_curves({name: [curve] for name, curve in result.losses.items()}),
        "differences": differences(result.losses, config.stacks),
    }
    claims = [claim for stack in config.stacks for claim in CLAIMS[stack]]
    lab.report(
        __doc__, claims, [result.metrics], config=config, folder=config.results,
        seconds=time.monotonic() - began, figures=figures,
    )  # fmt: skip
    shutil.rmtree(config.results / "checkpoints", ignore_errors=True)


def main(config: Config) -> None:
    """Does the work, in this process, or in several that it starts or that a cluster started."""
    cluster = config.processes == "cluster"
    if config.processes not in (1, "cluster") and not distributed.is_worker():
        count, devices = int(config.processes), config.devices or 8
        _, folders = prepare(config, devices)
        distributed.launch(
            count,
            [sys.executable, *sys.orig_argv[1:]],
            devices_each=devices // count,
            advice=functools.partial(advice, folders),
        )
        return
    if config.processes == 1:
        distributed.virtual_devices(config.devices or 8)
    with distributed.member(cluster):
        work(config)


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
