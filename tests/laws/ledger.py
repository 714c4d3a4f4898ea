"""Which op has met which law: content hashes in ledger.jsonl, one line an op.

A pair (op, law) has been met if the line of the op holds today's hash of everything that decides
it: the leaf and all modules of the package that it imports, its test file with the oracle, and the
law.  Docstrings and comments do not count.  `make laws` runs what is due and writes the lines;
`test_every_op_has_met_every_law` reads them.
"""

import ast
import functools
import hashlib
import inspect
import io
import json
import tokenize
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH = Path(__file__).with_name("ledger.jsonl")

# What laws of a kind run besides the leaf and what it imports.
ALSO = {
    "devices": ("attnjax.parallel",),
    "kernels": ("attnjax.kernels.flash.triton", "attnjax.kernels.linear.triton"),
}
# The adapters import kernels when a kernel is asked for: no other law depends on those.
LAZY = ("attnjax.kernels", "attnjax.experiments")


# --------------------------------------------------------------------------------------- hashes


def path_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    if (path / "__init__.py").exists():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


def bare(text: str) -> str:
    """Code without docstrings, comments and empty lines: the same under every Python.

    A syntax tree would forgive a change of layout, too, but is printed otherwise by each release.
    """
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                first, last = body[0].lineno, body[0].end_lineno
                lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


@functools.cache
def code_of(path: Path) -> str:
    """The hash of a file's code, whatever its comments and docstrings."""
    return digest(bare(path.read_text(encoding="utf-8")))


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Modules of the project that a module imports, at the top or in a function."""
    path = path_of(module)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name.startswith("attnjax.") and path_of(name))


@functools.cache
def closure(roots: tuple[str, ...], lazy: bool) -> tuple[str, ...]:
    """The modules and all that they import, sorted; those in LAZY only with `lazy`.

    Packages whose __init__ only gathers names count for nothing: their modules do.
    """
    seen, todo = set(), list(roots)
    while todo:
        module = todo.pop()
        if module in seen or (not lazy and module.startswith(LAZY)):
            continue
        seen.add(module)
        gathers = module.startswith("attnjax.ops.") and module.count(".") == 2
        todo += () if gathers else imports_of(module)
    return tuple(sorted(seen))


def content_hash(op, law: str) -> str:
    """Of everything that decides whether the op obeys the law, but the law itself."""
    kind = law.split("[")[0]
    extra = next((ALSO[k] for k in ALSO if kind.startswith(k)), ())
    modules = closure((op.module, *extra), lazy=kind.startswith("kernels"))
    package, leaf = op.module.split(".")[-2:]
    test = ROOT / "tests" / "ops" / package / f"test_{leaf}.py"
    files = [path_of(m) for m in modules] + [test, ROOT / "tests" / "ops" / "plain.py"]
    return digest(*(code_of(path) for path in files if path and path.exists()))


@functools.cache
def law_hash(fn) -> str:
    """Of the law, with what its module offers to all laws, and of what cases are."""
    path = Path(inspect.getsourcefile(inspect.unwrap(fn)))
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            if node.name != fn.__name__:
                first = min(x.lineno for x in (node, *node.decorator_list))
                lines[first - 1 : node.end_lineno] = [""] * (node.end_lineno - first + 1)
    return digest(bare("\n".join(lines)), code_of(Path(__file__).with_name("cases.py")))


def pair_hash(op, law: str, fn) -> str:
    return digest(content_hash(op, law), law_hash(fn))[:10]


def holds(rows: dict[str, dict], name: str, law: str, hash_: str) -> bool:
    """Whether the op has met the law as both are today."""
    return rows.get(name, {}).get("passed", {}).get(law) == hash_


# ---------------------------------------------------------------------------------- the file


def read() -> dict[str, dict]:
    """Op name -> {"day", "seconds", "passed": {law: hash}}."""
    if not PATH.exists():
        return {}
    rows = (json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines())
    return {row.pop("op"): row for row in rows}


def state_of_leaves() -> tuple[set[str], dict[str, str]]:
    """The leaves with a formula that is due, and the day on which each one's laws ran last."""
    from attnjax.catalogue import OPS
    from tests.laws import test_one_device

    rows, due, days = read(), set(), {}
    for op in OPS:
        law = "formula[truth]" if op.kind != "policy" else "a_policy_selects_within_its_budget"
        fn = getattr(test_one_device, f"test_{law.split('[')[0]}")
        if not holds(rows, op.name, law, pair_hash(op, law, fn)):
            due.add(op.module)
        days[op.module] = rows.get(op.name, {}).get("day", "")
    return due, days


def write(rows: dict[str, dict], names: Iterable[str]) -> None:
    """Replaces the file at once: the rows of the ops that there are, in order."""
    lines = [json.dumps({"op": name, **rows[name]}) for name in sorted(names) if name in rows]
    new = PATH.with_suffix(".tmp")
    new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    new.replace(PATH)
