"""The pages of the site: their examples run, and what is generated covers the catalogue."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attnjax import catalogue
from attnjax.catalogue import OPS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))


def test_the_first_pages_run():
    code = f"{blocks('index.md')}\n{blocks('start.md')}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    assert "runs" in told.stdout


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_tells_formula_signature_papers_and_limits(pages):
    papers = {paper.id: paper for paper in catalogue.papers()}
    (op,) = (op for op in OPS if op.name == "softpick_attention")
    page = pages.page_of(op, papers, picture=False)
    assert page.startswith("# softpick_attention\n") and "arXiv:2504.20966" in page
    assert "softpick_attention(\n    q: "
    assert papers[op.papers[0]].title in page and "## What runs it" in page
    assert all(f"- {limit.says}" in page for limit in op.limits)


def test_measured_claims_stand_with_the_paper(pages):
    studied = [p for p in catalogue.papers() if any(".experiments." in e for e in p.entries)]
    told = {p.id: list(pages.verdicts_of([p])) for p in studied}
    with_verdicts = [number for number, lines in told.items() if lines]
    assert len(with_verdicts) > 20
    (paper,) = (p for p in studied if p.id == with_verdicts[0])
    name = next(e.rpartition(".")[2] for e in paper.entries if ".experiments." in e)
    claims = json.loads((DOCS / "claims" / name / "result.json").read_text())["claims"]
    assert all(claim["claim"] in "".join(told[paper.id]) for claim in claims)


def test_the_reference_has_every_part(pages):
    page = pages.page_of_parts()
    assert all(f"### {part.name}\n" in page for part in catalogue.parts())
    assert "### attend\n" in page and "### linear_attend\n" in page


def test_indices_name_every_mechanism(pages, tmp_path):
    told = "".join(pages.page_of_family(family, tmp_path) for family in pages.families())
    assert all(f"\n{op.name}\n" in told for op in OPS)
    assert all(f"]({pages.slug(f)}/index.md)" in pages.page_of_gallery(tmp_path)
               for f in pages.families())  # fmt: skip


def test_names_of_translations_are_there():
    names = {op.name for op in OPS}
    table = (DOCS / "translations.md").read_text().partition("## flash")[2].partition("## Conf")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| `")]
    wanted = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(wanted) > 14 and wanted <= names
