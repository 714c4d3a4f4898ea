"""The catalogue is complete, papers.csv is true, imports run one way, the command line answers."""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import attnjax
import attnjax.ops
from attnjax import catalogue, cli
from attnjax.catalogue import OPS, papers
from tests.laws.cases import oracle

ROOT = Path(attnjax.__file__).parent.parent
EXEMPTIONS = {
    "grouped", "split", "padding", "empty_rows", "bfloat16", "gradients", "jvp", "vmap", "future",
    "devices", "explicit",
}  # fmt: skip
PAPERS = papers()

# --------------------------------------------------------------------------------- the records


def leaf_files():
    """Every module below ops/ that is no package."""
    found = pkgutil.walk_packages(attnjax.ops.__path__, "attnjax.ops.")
    return {module.name for module in found if not module.ispkg}


def test_every_leaf_is_listed_and_every_name_is_unique():
    """The family's import of a leaf's function is the listing."""
    assert {op.module for op in OPS} == leaf_files()
    names = Counter(op.name for op in OPS)
    assert not [name for name, count in names.items() if count > 1]
    for op in OPS:
        family = importlib.import_module(op.module.rpartition(".")[0])
        assert getattr(family, op.name) is op.fn


def test_every_op_has_an_oracle_of_the_same_arguments():
    for op in (op for op in OPS if op.kind != "policy"):
        taken = set(inspect.signature(oracle(op)).parameters)
        assert set(op.sample()) <= taken, op.name
        assert taken <= set(op.params) | {"allowed"}, op.name
        assert ("mask" not in op.params) or ("allowed" in taken), op.name


def test_a_record_says_what_it_must():
    """Of every op: parametrized by ops, a test would be taken by turns, as laws are."""
    for op in OPS:
        assert set(op.exempt) <= EXEMPTIONS, op.name
        assert all(len(reason.split()) > 3 for reason in op.exempt.values()), op.name
        doc = inspect.getdoc(sys.modules[op.module])
        for word in ("\nPaper: ", "arXiv:", "\nLimits: ", "    "):
            assert word in doc, f"{op.name}: no {word.strip()} in its module"
        assert inspect.getdoc(op.fn), op.name


def bodies(path):
    """(function, code lines of its body) of a file; docstrings and comments do not count."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            body = lines[first.lineno - 1 : node.end_lineno]
            yield node.name, sum(bool(x.strip()) and not x.strip().startswith("#") for x in body)


def test_bodies_are_short_and_formatted():
    """A function body has at most 60 lines; under ops/ no line escapes the formatter."""
    long = [
        f"{path.relative_to(ROOT)}: {name} has {count} lines"
        for path in (ROOT / "attnjax").rglob("*.py")
        for name, count in bodies(path)
        if count > 60
    ]
    assert not long
    skips = [p for p in (ROOT / "attnjax" / "ops").rglob("*.py") if "fmt: skip" in p.read_text()]
    assert not skips


# -------------------------------------------------------------------------------------- papers


def test_papers_are_all_there_and_well_formed():
    assert [paper.id for paper in PAPERS] == list(range(405))
    for paper in PAPERS:
        assert paper.title and paper.family, paper
        assert not (paper.out and (paper.missing or paper.entries)), paper
        assert not paper.missing or paper.entries, paper
    assert {number for op in OPS for number in op.papers} <= {paper.id for paper in PAPERS}


def test_what_stands_for_a_paper_exists():
    modules = {entry for paper in PAPERS for entry in paper.entries}
    for entry in sorted(modules - {op.dotted for op in OPS}):
        assert importlib.import_module(entry), entry


def test_a_leaf_stands_in_the_family_of_its_papers():
    families = {paper.id: paper.family for paper in PAPERS}
    assert not [op.name for op in OPS if any(families[p] != op.family for p in op.papers)]


def test_the_table_of_papers_is_current(capsys):
    """`make papers` writes it."""
    cli.main(["papers", "--markdown"])
    table = (ROOT / "attnjax" / "PAPERS.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == table


# ------------------------------------------------------------------------------------- imports

# A package may import those of a smaller number, and itself.
ORDER = {
    "attnjax.typing": 0,
    "attnjax.op": 0,
    "attnjax.core": 1,
    "attnjax": 2,  # the public names
    "attnjax.ops": 2,
    "attnjax.parallel": 2,
    "attnjax.catalogue": 3,
    "attnjax.decode": 4,
    "attnjax.probes": 4,
    "attnjax.nn": 5,
    "attnjax.lab": 6,
    "attnjax.cli": 7,
    "attnjax.__main__": 8,
    "experiments": 7,
}


def place(module):
    """The entry of ORDER that a module belongs to: the longest that begins its name."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in ORDER), None)


def imported(tree, lazy):
    """Names that a file imports; those inside functions only with `lazy`."""
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            hidden |= {id(inner) for inner in ast.walk(node)} - {id(node)}
    for node in ast.walk(tree):
        if id(node) in hidden and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (at_top(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            submodule = lambda alias, of=node.module: is_module(f"{of}.{alias.name}")
            yield from (
                at_top(f"{node.module}.{alias.name}" if submodule(alias) else node.module)
                for alias in node.names
            )


def at_top(name):
    """Kernels and experiments are folders of their own, imported through attnjax."""
    inner = name.removeprefix("attnjax.")
    return inner if inner.split(".")[0] in ("kernels", "experiments") else name


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists() or path.is_dir()


# What turns a call into arguments of kernels: the one place that is made of both.
ADAPTERS = {"attnjax.core.pairwise.fused", "attnjax.core.recurrence.triton"}


def violations(module, source):
    tree = ast.parse(source)
    if module.split(".")[0] == "kernels":
        # a body is Triton, read as text; a benchmark knows what it times
        late = ("triton", "jax_triton") if not module.endswith("body") else ()
        bad = [name for name in imported(tree, lazy=False) if name.split(".")[0] in late]
        lazy = module not in ("kernels.bench", "kernels.forms", "kernels.rivals")
        found = imported(tree, lazy)
        return bad + [name for name in found if name.split(".")[0] == "attnjax"]
    here = place(module)
    assert here is not None, f"{module} has no place in ORDER"
    bad = []
    lazy_places = ("kernels", "attnjax.parallel")
    for name in imported(tree, lazy=True):
        there = place(name)
        if there is not None and there != here and ORDER[there] >= ORDER[here]:
            bad.append(name)
    if here == "attnjax.core" and module not in ADAPTERS:
        top = imported(tree, lazy=False)
        bad += [name for name in top if name.startswith(lazy_places)]
    return bad


def sources():
    for folder in ("attnjax", "kernels", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield module.removesuffix(".__init__"), path.read_text(encoding="utf-8")


def test_done_papers_were_held_against_a_reference():
    """Each stands in docs/fidelity.md, if only to say that no reference could be found."""
    rows = (ROOT / "docs" / "fidelity.md").read_text().splitlines()
    first = [row.split("|")[1] for row in rows if row.startswith("| ")]
    told = {int(number) for cell in first for number in re.findall(r"\d+", cell)}
    done = {paper.id: paper.title for paper in papers() if paper.status == "done"}
    assert {number: done[number] for number in done.keys() - told} == {}


def test_imports_run_one_way():
    broken = {module: bad for module, text in sources() if (bad := violations(module, text))}
    assert not broken


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("attnjax.core.masks", "from attnjax.ops import position"),
        ("attnjax.core.masks", "import kernels.flash"),
        ("attnjax.ops.position.shaw", "from attnjax.catalogue import OPS"),
        ("attnjax.ops.position.shaw", "def f():\n    from attnjax import nn"),
        ("attnjax.nn.attention", "import attnjax.lab.train"),
        ("attnjax.typing", "from attnjax.core import masks"),
        ("kernels.flash", "def f():\n    from attnjax.core import masks"),
        ("kernels.launch", "import triton"),
    ],
)
def test_the_order_of_imports_is_enforced(module, source):
    assert violations(module, source)


def test_importing_attnjax_imports_no_kernels():
    program = (
        "import sys, attnjax; "
        "print([m for m in sys.modules if m.split('.')[:2] == ['attnjax', 'kernels'] "
        "or m.split('.')[0] in ('kernels', 'triton', 'jax_triton')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_lazy_import_of_kernels_is_allowed_to_the_core():
    assert not violations("attnjax.core.attend", "def f():\n    import kernels.flash")


# -------------------------------------------------------------------------------- command line


def run(capsys, *args):
    code = cli.main(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_papers_prints_rows_and_counts(capsys):
    code, out, err = run(capsys, "papers", "--family", "position")
    assert (code, err) == (0, "")
    assert "DeBERTa" in out and "disentangled_attention" in out and "Softpick" not in out
    done = sum(p.status == "done" for p in PAPERS if p.family == "position")
    every = sum(p.family == "position" for p in PAPERS)
    totals = [line.split() for line in out.splitlines() if "position" in line][-1]
    assert [x for x in totals if x.isdecimal()] == [str(done), str(every - done), "0", str(every)]


def test_papers_as_json_and_markdown(capsys):
    _, out, _ = run(capsys, "papers", "--json", "--todo")
    rows = json.loads(out)
    assert [row["id"] for row in rows] == [p.id for p in PAPERS if p.status == "todo"]
    _, out, _ = run(capsys, "papers", "--markdown")
    lines = out.splitlines()
    assert len(lines) == 2 + len(PAPERS)
    assert all(line.replace("\\|", "").count("|") == 7 for line in lines)


def test_show_tells_formula_signature_limits_and_implementations(capsys):
    code, out, _ = run(capsys, "show", "softpick_attention")
    assert code == 0
    for part in (
        "A_ij = relu(exp(s_ij) - 1)",
        "arXiv:2504.20966",
        "q: Float[B T N H],",
        "impl: str | Implementation | None = None,",
        "q = 0: every score is zero",
        "-> dense",
        "blockwise",
    ):
        assert part in out, part


def test_show_takes_the_id_of_a_paper(capsys):
    _, out, _ = run(capsys, "show", "141")
    assert "Quantizable Transformers" in out
    assert "clipped_softmax_attention(" in out and "gated_attention(" in out
    assert out.count("Two ways to let a head do nothing") == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("softpick_att", "attnjax.ops.softmax_core.softpick.softpick_attention("),
        ("2504.20966", "softpick_attention("),
        ("alibi", "attnjax.mods.alibi(slopes"),
        ("masks.causal", "k <= q: rows and columns start together (top-left)."),
        ("rotary", "q . k depends on differences"),
    ],
)
def test_show_takes_beginnings_arxiv_numbers_and_parts(capsys, name, told):
    code, out, _ = run(capsys, "show", name)
    assert code == 0 and told in out


def test_find_searches_names_formulas_and_titles(capsys):
    names = lambda *words: [e.name for e in catalogue.find(words)]
    assert names("alibi")[:2] == ["mods.alibi", "mods.alibi_slopes"]
    assert names("rope")[0] == "core.positions.rotary"
    assert "gated_delta_net" in names("delta", "gated")
    everything = {e.name for e in catalogue.find(())}
    assert {op.name for op in OPS} <= everything and "normalizers.softpick" in everything
    todo = next(p for p in PAPERS if p.status == "todo" and not p.entries)
    assert f"paper {todo.id}" in names(*re.findall(r"\w+", todo.title)[:4])
    code, out, _ = run(capsys, "find", "softpick")
    assert code == 0 and "softpick_attention  (softmax-core, papers" in out


def test_every_part_is_told():
    told = [part.name for part in catalogue.parts() if not part.doc]
    assert not told and len(catalogue.parts()) > 60


def test_without_a_command_all_are_listed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    out = capsys.readouterr().out
    assert not stopped.value.code and "find" in out and "explain" in out


def test_explain_takes_a_length(capsys):
    _, out, _ = run(capsys, "explain", "forgetting_attention", "--length", "512")
    assert "T=512" in out and "-> blockwise" in out


def test_explain_names_the_implementation_that_runs(capsys):
    code, out, _ = run(capsys, "explain", "forgetting_attention")
    assert code == 0 and "-> dense" in out and "mods add_difference" in out


def test_balance_and_plan_tell_about_many_devices(capsys):
    code, out, _ = run(capsys, "balance", "--length", "1024", "--window", "64")
    assert code == 0 and "1.874" in out  # causal, contiguous: (2 T - T/P + 1) / (T + 1)
    code, out, _ = run(capsys, "plan", "--context", "64k", "--devices", "8")
    assert code == 0 and "best (predicted): " in out


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("show", "sofpick"), "NAME: 'sofpick' is unknown; did you mean 'softpick'?"),
        (("explain", "shaw_relatve"), "did you mean 'shaw_relative_attention'?"),
        (
            ("papers", "--family", "positon"),
            "family: 'positon' is unknown; did you mean 'position'?",
        ),
        (("show", "no_such_thing"), "unknown; `find` alone lists what there is"),
        (("show", "cosine_"), "'cosine_' is unknown"),
        (("show", "2504.99999"), "NAME: no op says arXiv:2504.99999"),
        (("find", "no_such_thing"), "WORDS: nothing has no_such_thing"),
        (("explain", "alibi"), "NAME: alibi has no op"),
        (("explain", "cog_attention", "--length", "0"), "--length: got 0, expected at least 1"),
        (("show", "999"), "NAME: no paper 999; expected an id 0 .. 404"),
        (("papers", "--json", "--markdown"), "given together; expected one of them"),
        (
            ("balance", "--length", "1001"),
            "length is 1001, expected a multiple of 2 * devices",
        ),
        (("plan", "--kv-heads", "5"), "K=5: expected N to be a multiple of K"),
    ],
)
def test_a_mistake_is_one_line_with_a_suggestion(capsys, args, told):
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "") and told in err and err.count("\n") == 1


def test_a_pipe_that_closes_early_is_no_error():
    command = [sys.executable, "-m", "attnjax", "papers"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()
