"""Which strategy suits a sequence, a number of devices and their links: predicted, not measured.

    compute = FLOPs of the busiest device / FLOP/s          message = bytes / rate + latency

    ring, h hops     h max(compute / (h + 1), message) + compute / (h + 1)
    all others       compute + messages, one after another; usp's ring hides as the ring does

A collective pays the latency once, hops pay it each.  A ring that leaves a node goes at the rate
between nodes; of an all-to-all the part that leaves does, while the other part goes inside.  The
FLOP/s are those that kernels keep up at any size, so small tiles look better here than they are.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from attnjax.parallel.layouts import Layout
from attnjax.parallel.model import costs
from attnjax.parallel.model.costs import Attention, Cost, Decay, Mask

PAPERS = (53, 349)

Kind = Literal["softmax", "linear"]
Overlap = Literal["no", "each hop", "ring hops"]

PAIRWISE = "computes all pairs"


@dataclass(frozen=True)
class Machine:
    """P devices in nodes; rates in FLOP/s and bytes/s of each device, latency in seconds.

    Without `inter_link` all devices are one node.
    """

    devices: int
    flops: float
    link: float
    inter_link: float | None = None
    devices_per_node: int = 8
    latency: float = 1e-5

    def __post_init__(self):
        for name in ("devices", "flops", "link", "inter_link", "devices_per_node"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, expected more than 0")
        if self.latency < 0:
            raise ValueError(f"latency is {self.latency}, expected 0 or more seconds")

    @property
    def node(self) -> int:
        """Devices that the fast link joins."""
        return self.devices if self.inter_link is None else self.devices_per_node

    def ring_rate(self, devices: int) -> float:
        """Of a ring that spans so many neighboring devices: that of its slowest link."""
        return self.link if devices <= self.node else self.inter_link or self.link

    def gather_time(self, bytes: float, devices: int) -> float:
        """An all-gather or reduce-scatter, around a ring."""
        return self.latency + bytes / self.ring_rate(devices) if bytes else 0.0

    def all_to_all_time(self, bytes: float, devices: int) -> float:
        """One all-to-all of `bytes` from each; nodes and their inside exchange at the same time."""
        if not bytes:
            return 0.0
        outside = max(0, devices - self.node) / (devices - 1)
        across = outside * bytes / self.ring_rate(devices)
        return self.latency + max(across, (1 - outside) * bytes / self.link)


@dataclass(frozen=True)
class Prediction:
    """Forward and backward of one layer on one device, in seconds and bytes.

    A strategy that cannot run has a reason, and takes forever.
    """

    strategy: str
    compute: float = inf
    bytes: float = inf
    communication: float = inf
    overlap: Overlap = "no"
    time: float = inf
    memory: float = inf
    note: str = ""
    reason: str | None = None


def predict(
    a: Attention, machine: Machine, kind: Kind = "softmax", decay: Decay = "none"
) -> list[Prediction]:
    """All strategies, in a fixed order; those that cannot run say why.

    For linear attention, ring, usp and all-gather move keys and values and compute all pairs.
    """
    P, linear = machine.devices, kind == "linear"
    pairwise = PAIRWISE if linear else ""
    rows: list[tuple[str, Callable[[str], Prediction]]] = []
    for layout in ("contiguous", "zigzag"):
        name = f"ring {layout}"
        rows.append((name, partial(_ring, a, machine, layout=layout, note=pairwise)))
    rows.append(("ulysses", partial(_ulysses, a, machine, linear)))
    rows.append(("usp", partial(_usp, a, machine, note=pairwise)))
    for layout in ("contiguous", "zigzag"):
        cost = partial(costs.allgather, a, P, layout)
        name = f"all-gather {layout}"
        rows.append((name, partial(_gather, cost, machine, note=pairwise)))
    for name, runs in (("lasp2 contiguous", 1), ("lasp2 zigzag", 2)):
        rows.append((name, partial(_lasp2, a, machine, kind, runs, decay)))
    if linear:
        rows.append(("lasp", partial(_lasp, a, machine)))
    return [_attempt(name, row) for name, row in rows]


def best(predictions: Sequence[Prediction]) -> Prediction | None:
    """The fastest of those that run here, or None."""
    able = [p for p in predictions if p.reason is None and p.strategy != "lasp"]
    return min(able, key=lambda p: p.time, default=None)


def _attempt(name: str, row: Callable[[str], Prediction]) -> Prediction:
    try:
        return row(name)
    except ValueError as error:  # the costs refuse what cannot be shared out
        return Prediction(name, reason=str(error).removeprefix(f"{name}: "))


# --------------------------------------------------------------------------- one strategy each


def _times(cost: Cost, machine: Machine) -> tuple[float, float]:
    return cost.forward_flops / machine.flops, cost.backward_flops / machine.flops


def _ring_times(
    a: Attention, machine: Machine, R: int, layout: Layout, span: int
) -> tuple[float, float]:
    """Communication, and the whole time, of a ring of R that spans `span` devices."""
    cost, h = costs.ring(a, R, layout), costs.ring_hops(a, R, layout)
    forward, backward = _times(cost, machine)
    if h == 0:
        return 0.0, forward + backward
    message = lambda bytes: machine.latency + bytes / machine.ring_rate(span)
    keys = costs.keys_values(a, R)
    there, back = message(keys * a.bytes), message(keys * (a.bytes + a.state_bytes))
    # what is left of the gradients' way home has no work to hide behind
    walks = costs.ring_walks(a, R, layout)
    home = sum(costs.gradient_hops(n) - n for n in walks) * message(keys * a.state_bytes)
    hidden = lambda compute, hop: h * max(compute / (h + 1), hop) + compute / (h + 1)
    time = hidden(forward, there) + hidden(backward, back) + home
    return h * (there + back) + home, time


def _ring(
    a: Attention, machine: Machine, name: str, layout: Layout = "contiguous", note: str = ""
) -> Prediction:
    P = machine.devices
    cost = costs.ring(a, P, layout)
    communication, time = _ring_times(a, machine, P, layout, P)
    return Prediction(
        name,
        sum(_times(cost, machine)),
        cost.bytes,
        communication,
        "each hop",
        time,
        cost.memory,
        note,
    )


def _ulysses(a: Attention, machine: Machine, linear: bool, name: str) -> Prediction:
    P = machine.devices
    cost = costs.ulysses(a, P)
    forward = costs.linear_flops(a, P) if linear else cost.forward_flops
    compute = forward * (1 + costs.BACKWARD_FLOPS) / machine.flops
    return _in_turn(name, compute, cost, _ulysses_time(a, machine, P))


def _ulysses_time(a: Attention, machine: Machine, P: int) -> float:
    """Two exchanges forward, two backward, each of half the bytes."""
    forward, backward = costs.ulysses_forward_bytes(a, P), costs.ulysses_backward_bytes(a, P)
    return sum(2 * machine.all_to_all_time(each / 2, P) for each in (forward, backward))


def _usp(a: Attention, machine: Machine, name: str, note: str = "") -> Prediction:
    """The fastest split and layout; neighbors share heads, the ring strides over them."""
    P = machine.devices
    splits = [U for U in range(2, P) if P % U == 0]
    if not splits:
        raise ValueError(f"{P} devices have no split R x U with both above 1")
    able = [U for U in splits if a.N % U == 0]
    if not able:
        raise ValueError(f"N={a.N} heads cannot be shared by any of {splits} devices")
    found = []
    for U in able:
        R = P // U
        heads, around = costs.usp_parts(a, R, U)
        layouts: tuple[Layout, ...] = ("contiguous", "zigzag")
        for layout in layouts[: 1 + (a.T % (2 * R) == 0)]:
            cost = costs.usp(a, R, U, layout)
            exchange = _ulysses_time(heads, machine, U)
            communication, time = _ring_times(around, machine, R, layout, P)
            found.append(
                Prediction(
                    f"{name} {R} x {U} {layout}",
                    sum(_times(cost, machine)),
                    cost.bytes,
                    communication + exchange,
                    "ring hops",
                    time + exchange,
                    cost.memory,
                    note,
                )
            )
    return min(found, key=lambda p: p.time)


def _gather(cost: Callable[[], Cost], machine: Machine, name: str, note: str = "") -> Prediction:
    each, P = cost(), machine.devices
    parts = (each.forward_bytes, each.backward_bytes)
    communication = sum(machine.gather_time(bytes, P) for bytes in parts)
    return _in_turn(name, sum(_times(each, machine)), each, communication, note)


def _lasp2(
    a: Attention, machine: Machine, kind: Kind, runs: int, decay: Decay, name: str
) -> Prediction:
    _refuse_softmax(a, kind)
    return _gather(partial(costs.lasp2, a, machine.devices, runs, decay), machine, name)


def _lasp(a: Attention, machine: Machine, name: str) -> Prediction:
    """P - 1 sends that wait for each other, forward and backward."""
    _refuse_softmax(a, "linear")
    P = machine.devices
    hop = machine.latency + costs.state_bytes(a) / machine.ring_rate(P)
    cost = costs.lasp(a, P)
    waiting = 2 * (P - 1) * hop
    return _in_turn(name, sum(_times(cost, machine)), cost, waiting, "for comparison, not here")


def _refuse_softmax(a: Attention, kind: Kind) -> None:
    if kind != "linear":
        raise ValueError("of linear attention only, which has states")
    if a.mask == "window":
        raise ValueError("mask 'window': linear attention has none, expected 'causal' or 'full'")


def _in_turn(
    name: str, compute: float, cost: Cost, communication: float, note: str = ""
) -> Prediction:
    time = compute + communication
    return Prediction(name, compute, cost.bytes, communication, "no", time, cost.memory, note)


# --------------------------------------------------------------------------- command line

_UNITS = ("", "k", "M", "G", "T")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def size(text: str) -> int:
    """A number of tokens: suffixes are binary, 128k is 131072 and 1M is 2**20."""
    number, unit = _number(text, "tokens, such as 4096, 128k or 1M")
    value = number * 1024 ** _UNITS.index(unit)
    if value != int(value):
        raise ValueError(f"{text!r} is {value} tokens, expected a whole number")
    return int(value)


def rate(text: str) -> float:
    """A number per second: suffixes are decimal, 400T is 4e14."""
    number, unit = _number(text, "a number per second, such as 200G")
    return number * 1000.0 ** _UNITS.index(unit)


def seconds(text: str) -> float:
    """A time, such as 10us, 1.5ms or 1s."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(s|ms|us|ns)", text.strip())
    if not found:
        raise ValueError(f"{text!r}: expected a time, such as 10us or 1.5ms")
    return float(found[1]) * _SECONDS[found[2]]


def _number(text: str, expected: str) -> tuple[float, str]:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([kKMGT]?)", text.strip())
    if not found:
        raise ValueError(f"{text!r}: expected {expected}")
    return float(found[1]), found[2].replace("K", "k")


def _scaled(value: float, base: int = 1000) -> str:
    """A number with the suffix that leaves 1 to 4 digits before the point."""
    step = 0
    while step < len(_UNITS) - 1 and value >= base and (base == 1000 or value % base == 0):
        value, step = value / base, step + 1
    return f"{value:.4g}{_UNITS[step]}"


def _time(value: float) -> str:
    unit = next((unit for unit, scale in _SECONDS.items() if value >= scale), "ns")
    return f"{value / _SECONDS[unit]:.3g}{unit}"


def _argument(read: Callable[[str], float], show: Callable[[float], str], metavar: str):
    """How the command line reads and shows a number with a suffix."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda given: read(given[0]),
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [show(value)],
    )


Tokens = Annotated[int, _argument(size, partial(_scaled, base=1024), "TOKENS")]
Rate = Annotated[float, _argument(rate, _scaled, "RATE")]
Time = Annotated[float, _argument(seconds, _time, "TIME")]


@dataclass(frozen=True)
class Setting:
    """What is to be attended to, and on what; suffixes of tokens are binary, of rates decimal."""

    context: Tokens = 2**20
    """Tokens of the sequence: 128k is 131072, 1M is 2**20."""
    devices: int = 64
    """Devices that share the sequence."""
    heads: int = 32
    """Query heads."""
    kv_heads: int = 8
    """Key/value heads."""
    head_width: int = 128
    """Width of a head, of keys and of values."""
    batch: int = 1
    """Sequences at a time."""
    attention: Kind = "softmax"
    """Linear attention has lasp2 besides."""
    decay: Decay = "none"
    """Of linear attention: how its states fade."""
    mask: Mask = "causal"
    """Which pairs count."""
    window: Tokens = 4096
    """Keys that a query sees under the mask "window", itself among them."""
    flops: Rate = 400e12
    """FLOP/s that a device keeps up in attention."""
    link: Rate = 200e9
    """Bytes/s that a device sends, inside of a node."""
    inter_link: Rate | None = None
    """Bytes/s that a device sends to another node; by default all devices are one node."""
    devices_per_node: int = 8
    """Devices of a node."""
    latency: Time = 10e-6
    """Of each message or collective: 10us, 1ms."""
    element_bytes: int = 2
    """Bytes of an element of q, k and v; gradients and states travel in 4."""

    def parts(self) -> tuple[Attention, Machine]:
        T, H = self.context, self.head_width
        heads, width = (self.heads, self.kv_heads), self.element_bytes
        a = Attention(self.batch, T, T, *heads, H, H, width, mask=self.mask, window=self.window)
        rates = (self.flops, self.link, self.inter_link)
        return a, Machine(self.devices, *rates, self.devices_per_node, self.latency)


def plan(setting: Annotated[Setting, tyro.conf.OmitArgPrefixes]) -> None:
    """Predicts time and memory of one attention layer by strategy; nothing is measured."""
    a, machine = setting.parts()
    predictions = predict(a, machine, setting.attention, setting.decay)
    console = Console(
        width=None if sys.stdout.isatty() else 160, markup=False, highlight=False, emoji=False
    )
    console.print(_heading(setting))
    console.print(_table(predictions))
    for p in predictions:
        if p.reason is not None:
            console.print(f"{p.strategy} cannot run: {p.reason}")
    fastest = best(predictions)
    told = "none can run" if fastest is None else f"{fastest.strategy}, {_time(fastest.time)}"
    console.print(f"best (predicted): {told}")


def _heading(setting: Setting) -> str:
    window = f" {_scaled(setting.window, 1024)}" if setting.mask == "window" else ""
    between = "" if setting.inter_link is None else (
        f", {_scaled(setting.inter_link)}B/s between nodes of {setting.devices_per_node}"
    )  # fmt: skip
    return (
        f"{setting.attention} attention, {setting.mask}{window}, {setting.batch} x "
        f"{_scaled(setting.context, 1024)} tokens, {setting.heads} heads over {setting.kv_heads}, "
        f"width {setting.head_width}\n{setting.devices} devices of {_scaled(setting.flops)}FLOP/s, "
        f"{_scaled(setting.link)}B/s{between}, latency {_time(setting.latency)}\n"
        "Predicted from these numbers, not measured: one layer, forward and backward, per device."
    )


def _table(predictions: Sequence[Prediction]) -> Table:
    table = Table("strategy", caption="bytes are decimal")
    for column in ("compute", "sent", "communication"):
        table.add_column(column, justify="right")
    table.add_column("hidden")
    for column in ("time", "memory"):
        table.add_column(column, justify="right")
    table.add_column("note")
    fastest = best(predictions)
    for p in predictions:
        if p.reason is not None:
            table.add_row(p.strategy, *["-"] * 6, "cannot run, see below")
            continue
        note = ", ".join(filter(None, ["best" if p is fastest else "", p.note]))
        table.add_row(
            p.strategy, _time(p.compute), f"{_scaled(p.bytes)}B", _time(p.communication), p.overlap,
            _time(p.time), f"{_scaled(p.memory)}B", note,
        )  # fmt: skip
    return table
