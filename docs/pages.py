"""Writes the pages that the catalogue knows better than a person: a gallery, and a reference.

    gallery/index.md            families, with a picture of each mechanism
    gallery/FAMILY/NAME.md      formula, paper, signature, limits, what runs it, measured claims
    reference.md                masks, mods, normalizers, features, selectors; engines
    papers.md                   all 405 papers

A picture shows how strongly each output depends on each token; one is drawn again where the file of
its mechanism is younger.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import attnjax
from attnjax import catalogue
from attnjax.catalogue import OPS, Paper
from attnjax.cli import implementations, signature
from attnjax.op import Op

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "docs" / "claims"
ENGINES = (
    attnjax.attend, attnjax.attend_state, attnjax.join_states, attnjax.attention_weights,
    attnjax.attention_scores, attnjax.measure, attnjax.linear_attend, attnjax.explain,
    attnjax.dot_product_attention, attnjax.Blockwise, attnjax.Chunked, attnjax.Selection,
    attnjax.Dropout,
)  # fmt: skip


def write(docs: Path, *, pictures: bool = True) -> None:
    """All of them, into the folder of the other pages; only what has changed is written."""
    papers = {paper.id: paper for paper in catalogue.papers()}
    for op in OPS:
        folder = docs / "gallery" / slug(op.family)
        picture = folder / f"{op.name}.png"
        if pictures:
            draw(op, picture)
        put(folder / f"{op.name}.md", page_of(op, papers, picture.exists()))
    for family in families():
        put(docs / "gallery" / slug(family) / "index.md", page_of_family(family, docs))
    put(docs / "gallery" / "index.md", page_of_gallery(docs))
    put(docs / "reference.md", page_of_parts())
    put(docs / "papers.md", "# Papers\n\n" + (ROOT / "attnjax" / "PAPERS.md").read_text())


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def slug(family: str) -> str:
    return family.replace("_", "-")


def families() -> list[str]:
    return sorted({op.family for op in OPS})


def draw(op: Op, path: Path) -> None:
    """Its picture, if it has tokens that can be told apart."""
    from attnjax.lab.draw import picture_of_op
    from attnjax.lab.errors import UserError

    source = Path(str(inspect.getsourcefile(sys.modules[op.module])))
    none = path.with_suffix(".none")  # says that there is no picture
    if any(p.exists() and p.stat().st_mtime > source.stat().st_mtime for p in (path, none)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture_of_op(op, length=24).savefig(path, dpi=72, bbox_inches="tight")
    except UserError as error:
        none.write_text(f"{error}\n")


# ------------------------------------------------------------------------------------ one op


def page_of(op: Op, papers: dict[int, Paper], picture: bool) -> str:
    """The page of a mechanism."""
    about = inspect.getdoc(sys.modules[op.module]) or ""
    title = about.partition("\n")[0]
    parts = [f"# {op.name}", title]
    if picture:
        parts.append(
            f"![How strongly each output of {op.name} depends on each token]({op.name}.png)"
        )
    parts += [fenced(about.partition("\n")[2].strip(), "text")]
    parts += ["## Signature", fenced(signature(op), "python")]
    parts += [fenced(inspect.getdoc(op.fn) or "", "text")]
    parts += ["## Papers", *map(line_of, (papers[number] for number in op.papers))]
    if verdicts := list(verdicts_of([papers[number] for number in op.papers])):
        parts += ["## Measured", *verdicts]
    if limits := [f"- {limit.says}" for limit in op.limits]:
        parts += ["## Limits that are tested", "\n".join(limits)]
    if exempt := [f"- {law}: {reason}" for law, reason in op.exempt.items()]:
        parts += ["## Laws that it is exempt from", "\n".join(exempt)]
    if "impl" in op.params:
        parts += ["## What runs it, on a CPU", fenced(implementations(op), "text")]
    return "\n\n".join(filter(None, parts)) + "\n"


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```" if text else ""


def line_of(paper: Paper) -> str:
    missing = f"; not there yet: {paper.missing}" if paper.missing else ""
    return f"- {paper.title} ({paper.id}{missing})"


def verdicts_of(papers: list[Paper]) -> Iterator[str]:
    """What full runs of the papers' experiments found, each with a link to its report."""
    for paper in papers:
        for entry in paper.entries:
            name = entry.rpartition(".")[2]
            result = CLAIMS / name / "result.json"
            if ".experiments." not in entry or not result.exists():
                continue
            yield f"[{name}](../../claims/{name}/report.md):"
            claims = json.loads(result.read_text())["claims"]
            yield "\n".join(f"- **{c['verdict']}** {c['claim']}: {c['measured']}" for c in claims)


# ----------------------------------------------------------------------------------- indices


def page_of_family(family: str, docs: Path) -> str:
    """Cards of a family's mechanisms."""
    ops = [op for op in OPS if op.family == family]
    cards = "\n".join(card(op, docs) for op in ops)
    names = "\n".join(op.name for op in ops)
    return (
        f"# {family}\n\n::::{{grid}} 2 3 4 4\n{cards}\n::::\n\n"
        f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


def card(op: Op, docs: Path) -> str:
    picture = docs / "gallery" / slug(op.family) / f"{op.name}.png"
    shown = f":img-top: {op.name}.png\n" if picture.exists() else ""
    about = (inspect.getdoc(sys.modules[op.module]) or "").partition("\n")[0]
    return (
        f":::{{grid-item-card}} {op.name}\n:link: {op.name}\n:link-type: doc\n{shown}\n{about}\n:::"
    )


def page_of_gallery(docs: Path) -> str:
    """Families, and how many mechanisms each has."""
    counts = {family: sum(op.family == family for op in OPS) for family in families()}
    rows = "\n".join(f"| [{f}]({slug(f)}/index.md) | {n} |" for f, n in counts.items())
    names = "\n".join(f"{slug(family)}/index" for family in counts)
    return (
        f"# Gallery\n\n{len(OPS)} mechanisms, each a short function. A picture has outputs as rows "
        "and tokens as columns: the darker, the more the output depends on the token.\n\n"
        f"| family | mechanisms |\n|---|---|\n{rows}\n\n"
        f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


def page_of_parts() -> str:
    """The engines, and what composes."""
    told = ["# Reference", "## Engines"]
    for value in ENGINES:
        told += [f"### {value.__name__}", fenced(inspect.getdoc(value) or "", "text")]
    kinds = dict.fromkeys(part.kind for part in catalogue.parts())
    for kind in kinds:
        told.append(f"## {kind[0].upper()}{kind[1:]}{'' if kind.endswith('s') else 's'}")
        for part in catalogue.parts():
            if part.kind == kind:
                of = str(inspect.signature(part.value)) if inspect.isfunction(part.value) else ""
                head = f"attnjax.{part.name}{of}"
                told += [f"### {part.name}", fenced(f"{head}\n\n{part.doc}", "text")]
    return "\n\n".join(filter(None, told)) + "\n"
