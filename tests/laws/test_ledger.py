"""Every op has met every law as both are today, says the ledger; and the ledger sees changes."""

import json

import pytest

from attnjax.catalogue import OPS
from tests.laws import ledger, plugin, test_devices, test_kernels, test_one_device
from tests.laws.plugin import select


def pairs():
    """(op, law, function) of every law on every op that it applies to, as pytest parametrizes."""
    for module in (test_one_device, test_devices, test_kernels):
        for name, fn in vars(module).items():
            marks = getattr(fn, "pytestmark", ())
            for mark in (m for m in marks if name.startswith("test_") and m.name == "parametrize"):
                for values in mark.args[1]:
                    op, *rest = values if isinstance(values, tuple) else (values,)
                    law = name.removeprefix("test_")
                    yield op, f"{law}[{','.join(rest)}]" if rest else law, fn


def test_every_op_has_met_every_law():
    """`make laws` runs what is missing here, and writes it down."""
    rows, missing = ledger.read(), {}
    for op, law, fn in pairs():
        if not ledger.holds(rows, op.name, law, ledger.pair_hash(op, law, fn)):
            missing.setdefault(op.name, []).append(law)
    count = sum(map(len, missing.values()))
    assert not missing, f"{count} laws of {len(missing)} ops are due: run `make laws`"


# No gradients to queries and keys, which the leak law wants; their own test moves later tokens.
HARD = {f"{which}_hard_attention" for which in ("average", "leftmost", "rightmost")}
HARD |= {"tidal_attention", "magnifier_attention"}  # what chooses has none
HARD |= {"sampled_attention"}  # nor has what is drawn
HARD |= {"fused_globals"}  # its tokens are means of all cells
HARD |= {"deepseek_sparse_attention"}  # nor has its indexer
# Gradients pass through rounding as if it were not there; those of YOSO are a bound, by definition.
ROUNDED = {"sage_attention", "sage3_attention", "yoso"}


def test_every_op_is_under_the_formula_and_the_leak_law():
    under = {(op.name, law.split("[")[0]) for op, law, _ in pairs()}
    for op in (op for op in OPS if op.kind in ("attention", "mixer")):
        laws = {"formula", "gradients", "the_future"}
        laws -= (
            {"the_future"} if op.name in HARD else {"gradients"} if op.name in ROUNDED else set()
        )
        assert {(op.name, law) for law in laws} <= under


def test_docstrings_and_comments_do_not_change_a_hash(tmp_path):
    code = '"""A."""\n\n\ndef f(x):\n    """B."""\n    return x + 1  # c\n'
    paths = [tmp_path / f"{i}.py" for i in range(3)]
    paths[0].write_text(code)
    paths[1].write_text(code.replace("A.", "Z.\n").replace("B.", "Y.").replace("# c", "#  d"))
    paths[2].write_text(code.replace("x + 1", "x + 2"))
    first, same, other = map(ledger.code_of, paths)
    assert first == same != other


def test_a_leaf_depends_on_its_engine_and_not_on_another_leaf():
    (op,) = (op for op in OPS if op.name == "cog_attention")
    modules = ledger.closure((op.module,), lazy=False)
    assert {"attnjax.core.pairwise.tile_scan", "attnjax.core.normalizers.library"} <= set(modules)
    assert not [m for m in modules if "linear_recurrent" in m or m.startswith("attnjax.kernels")]
    assert "attnjax.parallel.ring" in ledger.closure((op.module, "attnjax.parallel"), lazy=False)


def test_a_ledger_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "PATH", tmp_path / "ledger.jsonl")
    rows = {"b": {"day": "2026-01-02", "seconds": 3.0, "passed": {"formula": "12"}}}
    ledger.write({**rows, "gone": rows["b"]}, ["a", "b"])
    assert ledger.read() == rows
    assert [json.loads(x)["op"] for x in ledger.PATH.read_text().splitlines()] == ["b"]
    assert ledger.holds(rows, "b", "formula", "12")
    assert not ledger.holds(rows, "b", "formula", "13")
    assert not ledger.holds(rows, "c", "formula", "12")


class Item:
    def __init__(self, op, law, hash_):
        self.originalname, self.user_properties = f"test_{law}", [("pair", (op, law, hash_))]
        self.callspec = type("Params", (), {"params": {"op": None}})


@pytest.mark.parametrize(
    ("which", "chosen"),
    [
        ("all", {"a formula", "a padding", "b formula", "b padding", "c padding"}),
        ("due", {"a padding", "c padding"}),  # a changed, c is new
        ("some", {"a formula", "b formula", "b padding"}),  # b passed before a; seconds for one
    ],
)
def test_what_runs(which, chosen):
    rows = {
        "a": {"day": "2026-02-01", "seconds": 5.0, "passed": {"formula": "1", "padding": "old"}},
        "b": {"day": "2026-01-01", "seconds": 5.0, "passed": {"formula": "1", "padding": "1"}},
    }
    items = [Item(op, law, "1") for op in "ab" for law in ("formula", "padding")]
    items.append(Item("c", "padding", "1"))
    found = select(items, rows, which, budget=8.0)
    assert {" ".join(dict(x.user_properties)["pair"][:2]) for x in found} == chosen


class Config:
    """Counts what is deselected."""

    def __init__(self):
        self.hook, self.dropped = self, []

    def pytest_deselected(self, items):
        self.dropped += items


@pytest.mark.parametrize(
    ("which", "most", "left"),
    [
        ("all", 1, "abcx"),
        ("some", 3, "abcx"),  # few leaves: all of them
        ("some", 1, "acx"),  # a is due, c rests the longest
        ("due", 3, "ax"),
    ],
)
def test_tests_of_leaves_take_turns(which, most, left, monkeypatch):
    make = lambda path: type("Item", (), {"nodeid": f"{path}::test"})()
    items = {x: make(f"tests/ops/f/test_{x}.py") for x in "abc"} | {
        "x": make("tests/core/test_x.py")
    }
    name = lambda x: f"attnjax.ops.f.{x}"
    days = {name("a"): "2026-03-01", name("b"): "2026-02-01", name("c"): "2026-01-01"}
    monkeypatch.setattr(ledger, "state_of_leaves", lambda: ({name("a")}, days))
    monkeypatch.setattr(plugin, "MOST_LEAVES", most)
    config = Config()
    kept = plugin.by_turns(config, list(items.values()), which)
    assert kept == [items[x] for x in left]
    assert len(kept) + len(config.dropped) == 4


def test_laws_of_a_module_have_hashes_of_their_own():
    hashes = {law.split("[")[0]: ledger.law_hash(fn) for _, law, fn in pairs()}
    assert len(set(hashes.values())) == len(hashes) > 20


def test_what_laws_share_counts_for_each_of_them(tmp_path):
    code = "def helper():\n    return 1\n\ndef test_a():\n    helper()\n\ndef test_b():\n    pass\n"
    hashes = []
    for i, text in enumerate((code, code.replace("pass", "1"), code.replace("return 1", "0"))):
        path = tmp_path / f"laws_{i}.py"
        path.write_text(text)
        names: dict = {}
        exec(compile(text, path, "exec"), names)
        hashes.append(ledger.law_hash(names["test_a"]))
    assert hashes[0] == hashes[1] != hashes[2]
