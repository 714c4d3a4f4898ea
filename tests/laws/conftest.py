"""Which laws run: every formula, what changed, and the longest unproven within a budget."""

import gc

import jax
import pytest

from tests.laws import ledger
from tests.laws.cases import BY_NAME, _case

JOURNAL = pytest.StashKey()
ALWAYS = ("formula", "annotations")


def pytest_collection_modifyitems(config, items):
    laws = [item for item in items if hasattr(item, "callspec") and "op" in item.callspec.params]
    rest = [item for item in items if item not in set(laws)]
    if not laws:
        return
    rows = ledger.read()
    for item in laws:
        op, law = item.callspec.params["op"], law_of(item)
        hash_ = ledger.pair_hash(op, law, item.function)
        item.user_properties.append(("pair", (op.name, law, hash_)))
        # a worker takes an op's laws one after the other: they share its programs
        item.add_marker(pytest.mark.xdist_group(op.name))
    chosen = select(laws, rows, config.getoption("laws"), config.getoption("laws_budget"))
    dropped = [item for item in laws if item not in set(chosen)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    order = {name: i for i, name in enumerate(BY_NAME)}
    chosen.sort(key=lambda item: order[item.callspec.params["op"].name])
    items[:] = chosen + rest


def law_of(item) -> str:
    """formula[tiles] of test_formula[cog_attention-tiles]."""
    law = item.originalname.removeprefix("test_")
    others = [str(x) for name, x in item.callspec.params.items() if name != "op"]
    return f"{law}[{','.join(others)}]" if others else law


def passed(item, rows) -> bool:
    """Whether the ledger says that this law holds of the op as it is."""
    name, law, hash_ = dict(item.user_properties)["pair"]
    return rows.get(name, {}).get("passed", {}).get(law) == hash_


def select(laws, rows, which, budget):
    """`all`, those `due`, or those always run, due ones, and the longest unproven ops."""
    if which == "all":
        return laws
    due = [item for item in laws if not passed(item, rows)]
    if which == "due":
        return due
    known = [item for item in laws if dict(item.user_properties)["pair"][0] in rows]
    always = [item for item in laws if law_of(item).startswith(ALWAYS)]
    names = dict.fromkeys(dict(item.user_properties)["pair"][0] for item in known)
    oldest = sorted(names, key=lambda name: (rows[name]["day"], name))
    some = set()
    for name in oldest:
        budget -= rows[name]["seconds"]
        if budget < 0:
            break
        some.add(name)
    more = [x for x in laws if dict(x.user_properties)["pair"][0] in some]
    return list(dict.fromkeys(always + more))


# ------------------------------------------------------------------------------ one op at a time

_last = None


@pytest.fixture(autouse=True)
def one_op_at_a_time(request):
    """Programs of an op are dropped with it: a worker's memory does not grow with the catalogue."""
    global _last
    name = getattr(getattr(request.node, "callspec", None), "params", {}).get("op")
    if name is not _last:
        _last = name
        _case.cache_clear()
        jax.clear_caches()
        gc.collect()
    yield
