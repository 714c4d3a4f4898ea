"""Bytes that a device sends, counted in the text of a compiled program.

    jax.jit(f).lower(...).compile().as_text()

By collective, for an operand of n bytes in a group of P devices:

    collective-permute   n              all-gather       (P - 1) n       (around a ring)
    all-reduce           2 (P - 1)/P n  reduce-scatter   (P - 1)/P n     all-to-all  (P - 1)/P n

These are the bytes of the busiest device.  What XLA compiled counts, not what was written: on a CPU
it widens bfloat16 to float32 before it sends.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod

OPS = ("collective-permute", "all-gather", "all-to-all", "reduce-scatter", "all-reduce")
UNKNOWN = ("collective-broadcast", "ragged-all-to-all", "send")
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}  # of the others the name tells


@dataclass(frozen=True)
class Collective:
    """All runs of one kind of collective: bytes a device sends in them, and how many they are."""

    op: str
    bytes: int
    count: int


def sent(compiled_text: str) -> dict[str, int]:
    """Bytes each device sends, by collective; those that send nothing are absent.

    A loop counts as often as it runs, a conditional as its branch of most bytes.  Raises ValueError
    for a loop around a collective whose number of turns is not in the text.
    """
    return {each.op: each.bytes for each in collectives(compiled_text)}


def collectives(compiled_text: str) -> tuple[Collective, ...]:
    """As `sent`, with how many collectives of each kind a device takes part in."""
    module = _parse(compiled_text)

    @cache
    def total(name: str) -> dict[str, tuple[int, int]]:
        if name not in module.computations:
            raise ValueError(f"compiled_text: computation {name!r} is called but not defined")
        found: dict[str, tuple[int, int]] = {}
        for instruction in module.computations[name].values():
            for op, (size, count) in _of(instruction, name, module, total).items():
                before = found.get(op, (0, 0))
                found[op] = before[0] + size, before[1] + count
        return found

    of_entry = total(module.entry)
    return tuple(Collective(op, *of_entry[op]) for op in OPS if op in of_entry)


def _of(
    instruction: "_Instruction",
    computation: str,
    module: "_Module",
    total: Callable[[str], dict[str, tuple[int, int]]],
) -> dict[str, tuple[int, int]]:
    """Bytes and number of the collectives that one instruction runs, by kind."""
    opcode = instruction.opcode
    if opcode.endswith(("-done", "-update")):  # counted where they start
        return {}
    op = opcode.removesuffix("-start")
    if op in UNKNOWN:
        raise ValueError(f"compiled_text: {opcode} has no rule here, expected {', '.join(OPS)}")
    if op in OPS:
        size = _bytes_sent(op, instruction, module.computations[computation], module.devices)
        return {op: (size, 1)} if size else {}
    called = [total(name) for name in instruction.called()]
    if opcode == "conditional":
        return max(called, key=lambda found: sum(size for size, _ in found.values()), default={})
    turns = [1] * len(called)
    if opcode == "while" and any(called):
        n = _turns(instruction, module.computations[computation], module)
        # the condition is asked once more than the body runs
        turns = [n + (name == instruction.named("condition")) for name in instruction.called()]
    merged: dict[str, tuple[int, int]] = {}
    for found, n in zip(called, turns, strict=True):
        for name, (size, count) in found.items():
            before = merged.get(name, (0, 0))
            merged[name] = before[0] + n * size, before[1] + n * count
    return {name: pair for name, pair in merged.items() if pair[1]}


# ----------------------------------------------------------------------------- one collective


def _bytes_sent(op: str, instruction: "_Instruction", within: "_Computation", devices: int) -> int:
    size = sum(_bytes(type) for type in _operand_types(instruction, within))
    if op == "collective-permute":
        if "slice_sizes=" in instruction.rest:
            raise ValueError(f"compiled_text: {instruction.name} permutes slices, expected arrays")
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.braces("source_target_pairs"))
        return size if any(source != target for source, target in pairs) else 0
    P = _group_size(instruction, devices)
    if op == "all-gather":
        return (P - 1) * size
    share = 2 * (P - 1) if op == "all-reduce" else P - 1
    return -(-share * size // P)


def _operand_types(instruction: "_Instruction", within: "_Computation") -> Iterator[str]:
    for operand in _split(instruction.operands):
        type, _, name = operand.rpartition(" ")
        name = name.lstrip("%")
        if not type and name not in within:
            raise ValueError(f"compiled_text: operand {name!r} of {instruction.name} is undefined")
        yield type or within[name].type


def _group_size(instruction: "_Instruction", devices: int) -> int:
    """Devices of the largest group; no groups at all are one group of all devices."""
    text = instruction.rest.partition("replica_groups=")[2]
    if iota := re.match(r"\[\d+,(\d+)\]<=\[", text):  # [groups, size]<=[devices]T(order)
        return int(iota[1])
    if re.match(r"\{[{}\d, ]*\}", text):
        groups = re.findall(r"\{([\d, ]+)\}", instruction.braces("replica_groups"))
        return max((group.count(",") + 1 for group in groups), default=devices)
    if mesh := re.match(r"mesh\[([^\]]*)\] \{([^}]*)\}", text):  # mesh['a'=4,'b'=2] {'b'}
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if not text:
        return devices
    expected = "expected {{0,1},..}, [groups,size]<=[devices] or mesh['axis'=size] {'axis'}"
    raise ValueError(
        f"compiled_text: {instruction.name} has replica_groups={text[:40]}, {expected}"
    )


def _bytes(type: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    total = 0
    for dtype, dims in re.findall(r"([a-z]\w*)\[([\d,<= ]*)\]", type):
        width = re.fullmatch(r"(?:bf|f|s|u)(\d+)\w*", dtype)
        if dtype not in _BITS and width is None:
            raise ValueError(f"compiled_text: dtype {dtype!r} of {type} has no known width")
        bits = _BITS[dtype] if width is None else int(width[1])
        total += -(-prod(int(n) for n in re.findall(r"\d+", dims)) * bits // 8)
    return total


# ----------------------------------------------------------------------------- turns of a loop


def _turns(loop: "_Instruction", within: "_Computation", module: "_Module") -> int:
    """How often a loop runs: what XLA knows of it, or read off `i < n`, `i + step`, i's start."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(known[1])
    condition, body = (module.computations[loop.named(n)] for n in ("condition", "body"))
    test = _value(condition, _root(condition), module, ())
    match test:
        case ("compare", "LT" | "LE" as order, ("item", int(i)), int(end)):
            pass
        case ("compare", "GT" | "GE" as order, int(end), ("item", int(i))):
            pass
        case _:
            raise _unknown_turns(loop)
    step = _value(body, _root(body), module, (), i)
    start = _value(within, loop.operands.rpartition(" ")[2].lstrip("%"), module, (), i)
    match start, step:
        case int(first), ("add", ("item", int(j)), int(by)) if j == i and by > 0:
            return max(0, -(-(end + (order in ("LE", "GE")) - first) // by))
    raise _unknown_turns(loop)


def _unknown_turns(loop: "_Instruction") -> ValueError:
    return ValueError(
        f"compiled_text: loop {loop.name} holds a collective and its number of turns is unknown; "
        "expected known_trip_count, or a condition i < constant, i from and by a constant"
    )


def _value(
    within: "_Computation", name: str, module: "_Module", given: tuple, item: int | None = None
):
    """A scalar as an int, ("item", i) of the parameter, ("add" | "compare", ..), or None.

    With `item`, that element of a tuple; `given` are the values of a fusion's parameters.
    """
    at = within[name]
    parts = [part.rpartition(" ")[2].lstrip("%") for part in _split(at.operands)]
    inner = lambda n: _value(within, parts[n], module, given)
    if at.opcode == "tuple" and item is not None:
        return _value(within, parts[item], module, given)
    if at.opcode == "constant" and re.fullmatch(r"-?\d+", at.operands):
        return int(at.operands)
    if at.opcode == "parameter" and given:
        return given[int(at.operands)]
    if at.opcode in ("copy", "bitcast", "convert"):
        return _value(within, parts[0], module, given, item)
    if at.opcode == "get-tuple-element" and within[parts[0]].opcode == "parameter":
        return "item", int(at.rest.partition("index=")[2].partition(",")[0])
    if at.opcode in ("fusion", "call"):
        called = module.computations[at.called()[0]]
        values = tuple(inner(n) for n in range(len(parts)))
        return _value(called, _root(called), module, values)
    if at.opcode == "add":
        a, b = inner(0), inner(1)
        return ("add", b, a) if isinstance(a, int) else ("add", a, b)
    if at.opcode == "compare":
        order = at.rest.partition("direction=")[2].partition(",")[0]
        return "compare", order, inner(0), inner(1)
    return None


def _root(computation: "_Computation") -> str:
    return next((x.name for x in computation.values() if x.root), list(computation)[-1])


# ----------------------------------------------------------------------------- the text


@dataclass(frozen=True)
class _Instruction:
    """name = type opcode(operands), rest"""

    name: str
    type: str
    opcode: str
    operands: str
    rest: str
    root: bool

    def braces(self, key: str) -> str:
        """What stands between the braces of key={..}."""
        text = self.rest.partition(f"{key}={{")[2]
        return text[: _end(text)]

    def named(self, key: str) -> str:
        """The name in key=%name, or ''."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    def called(self) -> list[str]:
        """The computations that it runs."""
        keys = ("to_apply", "calls", "condition", "body", "true_computation", "false_computation")
        one = [self.named(key) for key in keys]
        many = f"{self.braces('branch_computations')},{self.braces('called_computations')}"
        return [*filter(None, one), *re.findall(r"[\w.\-]+", many)]


_Computation = dict[str, _Instruction]


@dataclass(frozen=True)
class _Module:
    computations: dict[str, _Computation]
    entry: str
    devices: int


def _parse(text: str) -> _Module:
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("compiled_text: no ENTRY computation, expected compile().as_text()")
    count = lambda key: int(n[1]) if (n := re.search(rf"\b{key}=(\d+)", text)) else 1
    return _Module(computations, entry, count("num_partitions") * count("replica_count"))


def _instruction(line: str) -> _Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    text = re.sub(r"/\*.*?\*/", "", line[found.end() :])
    cut = _end(text[1:]) + 2 if text.startswith("(") else text.index(" ")
    opcode, _, after = text[cut:].strip().partition("(")
    end = _end(after)
    return _Instruction(found[2], text[:cut], opcode, after[:end], after[end + 1 :], bool(found[1]))


def _end(text: str) -> int:
    """Where the bracket closes that was opened just before the text."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return place
    return len(text)


def _split(text: str) -> list[str]:
    """Parts between the commas that are outside of brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()] if text.strip() else parts
