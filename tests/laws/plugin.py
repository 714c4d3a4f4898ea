"""Which laws run, and the keeping of the ledger: a pytest plugin."""

import datetime
import gc
import time

import jax
import pytest

from attnjax.op import Op
from tests.laws import ledger

WITH_LEAF = ("formula", "annotations")  # laws that go with the own tests of a leaf
MOST_LEAVES = 10  # whose formulas and own tests a default run takes: four CPU seconds each
_WRITE_EVERY = 20.0  # seconds: a killed run loses no more


def pytest_addoption(parser):
    group = parser.getgroup("laws")
    group.addoption(
        "--laws",
        choices=("some", "due", "all"),
        default="some",
        help="some: by turns, the formulas and own tests of some leaves, and all laws of the ops "
        "that met theirs the longest ago, within the budget; due: what the ledger does not know of "
        "the code as it is; all",
    )
    group.addoption("--laws-budget", type=float, default=30.0, help="CPU seconds, for --laws=some")
    group.addoption("--write-ledger", action="store_true", help="write down what has passed")


def pytest_configure(config):
    if config.getoption("--write-ledger") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Keeper(), "ledger-keeper")


# -------------------------------------------------------------------------------- which laws run


def tested(item) -> Op | None:
    """The op that a law is about; None for tests that are no laws."""
    op = getattr(getattr(item, "callspec", None), "params", {}).get("op")
    return op if isinstance(op, Op) else None


def law_of(item) -> str:
    """formula[tiles] of test_formula[cog_attention-tiles]."""
    law = item.originalname.removeprefix("test_")
    rest = [str(x) for name, x in item.callspec.params.items() if name != "op"]
    return f"{law}[{','.join(rest)}]" if rest else law


def pair_of(item) -> tuple[str, str, str]:
    """(op, law, hash)."""
    return dict(item.user_properties)["pair"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    laws = [item for item in items if tested(item) is not None]
    for item in laws:
        op, law = item.callspec.params["op"], law_of(item)
        pair = op.name, law, ledger.pair_hash(op, law, item.function)
        item.user_properties.append(("pair", pair))
        # a worker takes the laws of an op one after the other: they share its programs
        item.add_marker(pytest.mark.xdist_group(op.name))
    which, budget = config.getoption("--laws"), config.getoption("--laws-budget")
    chosen = set(select(laws, ledger.read(), which, budget))
    dropped = [item for item in laws if item not in chosen]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    rest = [item for item in items if item not in set(laws)]
    laws = sorted((x for x in laws if x in chosen), key=lambda x: pair_of(x)[0])
    in_full = {pair_of(x)[0] for x in laws if not law_of(x).startswith(WITH_LEAF)}
    turns = [x for x in laws if pair_of(x)[0] not in in_full] if which == "some" else []
    here = set(by_turns(config, turns + rest, which))
    items[:] = [x for x in laws + rest if x in here or x not in {*turns, *rest}]


def by_turns(config, items, which):
    """Without those tests of leaves that rest: with many leaves, a default run takes them by turns.

    The leaves with laws that are due are always tested, by `make laws`, too.
    """
    leaves = {item: leaf_of(item) for item in items}
    there = {leaf for leaf in leaves.values() if leaf}
    if which == "all" or not there or (which == "some" and len(there) <= MOST_LEAVES):
        return items
    due, days = ledger.state_of_leaves()
    by_age = sorted(there, key=lambda leaf: (days.get(leaf, ""), leaf))
    kept = due if which == "due" else due | set(by_age[:MOST_LEAVES])
    dropped = [item for item in items if leaves[item] and leaves[item] not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    return [item for item in items if item not in set(dropped)]


def leaf_of(item) -> str | None:
    """attnjax.ops.softmax_core.cog of its laws and of tests/ops/softmax_core/test_cog.py."""
    if (op := tested(item)) is not None:
        return op.module
    parts = item.nodeid.split("::")[0].split("/")
    if parts[:2] != ["tests", "ops"] or parts[-1] == "test_family.py":
        return None
    leaf = parts[-1].removeprefix("test_").removesuffix(".py")
    return f"attnjax.ops.{parts[2]}.{leaf}"


def select(laws, rows, which, budget):
    """The items to run."""
    if which == "all":
        return laws
    if which == "due":
        return [x for x in laws if not ledger.holds(rows, *pair_of(x))]
    always = [x for x in laws if law_of(x).startswith(WITH_LEAF)]
    oldest = sorted({pair_of(x)[0] for x in laws} & set(rows), key=lambda n: (rows[n]["day"], n))
    some = set()
    for name in oldest:
        budget -= rows[name]["seconds"]
        if budget < 0:
            break
        some.add(name)
    return always + [x for x in laws if pair_of(x)[0] in some]


# --------------------------------------------------------------------------- one op at a time


@pytest.fixture(autouse=True)
def one_op_at_a_time(request):
    """Programs of an op are dropped with it: workers do not grow with the catalogue."""
    op = tested(request.node)
    if op is not None and op.name != one_op_at_a_time.last:
        from tests.laws.cases import forget

        forget()
        jax.clear_caches()
        gc.collect()
        one_op_at_a_time.last = op.name
    yield


one_op_at_a_time.last = None


# --------------------------------------------------------------------------------- the ledger


class Keeper:
    """Writes to the ledger which pairs have passed, on the process that sees all reports."""

    def __init__(self):
        self.rows, self.seconds, self.written = ledger.read(), {}, time.monotonic()

    def pytest_runtest_logreport(self, report):
        pair = dict(report.user_properties).get("pair")
        if pair is None:
            return
        name, law, hash_ = pair
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
        row = self.rows.setdefault(name, {"day": "", "seconds": 0.0, "passed": {}})
        if report.failed:
            row["passed"].pop(law, None)
        elif report.when == "call" or report.skipped:
            row["passed"][law] = hash_
            row["day"] = datetime.date.today().isoformat()
        if time.monotonic() - self.written > _WRITE_EVERY:
            self.write()

    def pytest_sessionfinish(self):
        self.write()

    def write(self):
        from tests.laws.cases import BY_NAME

        for name, seconds in self.seconds.items():
            self.rows[name]["seconds"] = max(round(seconds, 1), self.rows[name]["seconds"])
        ledger.write(self.rows, BY_NAME)
        self.written = time.monotonic()
