"""Lists the experiments, runs them all, publishes what full runs found.

python -m experiments                      by topic: paper, minutes, verdicts of the last full run
python -m experiments all --smoke          each in seconds: that it runs
python -m experiments all --quick          each in about a minute
python -m experiments all                  full runs, as docs/claims has them: hours
python -m experiments all linear position  only those of some topics, or with some names
python -m experiments publish              writes docs/claims from the results of full runs
"""

import ast
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from attnjax.lab.cli import choose, one_line_errors
from attnjax.lab.errors import UserError
from attnjax.lab.files import results_folder, write_atomically

HERE = Path(__file__).parent
DOCS = HERE.resolve().parent / "docs" / "claims"
EFFORTS = ("smoke", "quick", "full")


@dataclass(frozen=True)
class Experiment:
    """A file `topic/name.py`, read without importing it."""

    topic: str
    name: str
    title: str
    papers: tuple[int, ...]

    @property
    def module(self) -> str:
        return f"{__package__}.{self.topic}.{self.name}"

    def found(self, folder: Path) -> dict[str, Any] | None:
        """The record of its last full run, where there is one."""
        path = folder / self.name / "result.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        return record if record.get("effort") == "full" else None


def experiments() -> dict[str, Experiment]:
    """All of them by name, in the order of topics."""
    found = {}
    for path in sorted(HERE.glob("*/*.py")):
        tree = ast.parse(path.read_text())
        values = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        if "STUDY" in values:
            title = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
            papers = ast.literal_eval(values["PAPERS"]) if "PAPERS" in values else ()
            found[path.stem] = Experiment(path.parent.name, path.stem, title, papers)
    return found


def show() -> None:
    """Prints them by topic."""
    console, topic = Console(), ""
    for each in experiments().values():
        if each.topic != topic:
            topic = each.topic
            console.print(f"\n[bold]{topic}[/bold]")
        record = each.found(DOCS)
        told = "no full run yet" if record is None else verdicts(record)
        papers = ", ".join(map(str, each.papers))
        console.print(f"  {each.name:<18} {each.title}", highlight=False, soft_wrap=True)
        console.print(f"  {'':<18} [dim]papers {papers or '-'}; {told}[/dim]", highlight=False)
    console.print(f"\npython -m {__package__}.TOPIC.NAME [--smoke | --quick]", highlight=False)


def verdicts(record: dict[str, Any]) -> str:
    """'3 hold, 1 untested; 4 minutes'."""
    counts = Counter(claim["verdict"] for claim in record["claims"])
    words = ", ".join(f"{counts[word]} {word}" for word in ("holds", "fails", "untested"))
    return f"{words}; {max(1, round(record['seconds'] / 60))} minutes"


def run(names: Sequence[str], effort: str, jobs: int = 1) -> None:
    """Runs them one after the other (or some at once); tells the seconds, and which failed.

    Raises UserError when one failed, after all have run.
    """
    chosen = selected(names)
    logs = results_folder(Path("results") / "logs")
    failed = []

    def one(each: Experiment) -> tuple[Experiment, int, float]:
        began = time.monotonic()
        flags = [] if effort == "full" else [f"--{effort}"]
        with (logs / f"{each.name}-{effort}.txt").open("wb") as log:
            done = subprocess.run(
                [sys.executable, "-m", each.module, *flags], stdout=log, stderr=subprocess.STDOUT
            )
        return each, done.returncode, time.monotonic() - began

    with ThreadPoolExecutor(jobs) as pool:
        for each, code, seconds in pool.map(one, chosen):
            said = "ran" if code == 0 else f"FAILED with status {code}"
            print(f"{each.topic + '.' + each.name:<26} {said}, {seconds:.1f} s", flush=True)
            if code != 0:
                failed.append(each)
                text = (logs / f"{each.name}-{effort}.txt").read_text(errors="replace")
                print(text[-3000:], flush=True)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(chosen)} failed: {' '.join(e.name for e in failed)}"
        )


def selected(names: Sequence[str]) -> list[Experiment]:
    """Those of the topics, or with the names, given; all if none is."""
    every = experiments()
    topics = {each.topic: each.topic for each in every.values()}
    known = choose("names", names, {**topics, **every}) if names else every
    return [each for each in every.values() if each.name in known or each.topic in known]


def publish(results: Path = Path("results"), docs: Path = DOCS) -> None:
    """Copies the reports of full runs into docs/claims, and writes its index."""
    lines = [
        "# Claims",
        "",
        "What each experiment's last full run found, written by `make claims`. A claim holds or",
        "fails by the 90 % interval over paired seeds (or rounds); untested says why.",
        "",
    ]
    head = ["| verdict | claim | paper | measured | wanted |", "|" + " --- |" * 5]
    for each in experiments().values():
        fresh = each.found(results)
        if fresh is not None:
            copied(results / each.name, docs / each.name)
        record = each.found(docs)
        if record is None:
            continue
        pages = sorted(path.name for path in (docs / each.name).glob("*.png"))
        lines += [f"## [{each.topic}.{each.name}]({each.name}/report.md)", ""]
        papers = ", ".join(map(str, each.papers)) or "none"
        lines += [f"Claimed: {each.title}. Papers: {papers}. Found: {verdicts(record)}.", "", *head]
        lines += [row(claim) for claim in record["claims"]]
        lines += ["", *(f"![{page}]({each.name}/{page})" for page in pages), ""]
    results_folder(docs)
    write_atomically(docs / "README.md", "\n".join(lines).encode())
    print(f"{docs / 'README.md'} is written")


def row(claim: dict[str, Any]) -> str:
    """A line of a table of claims."""
    word = f"**{claim['verdict']}**" if not claim["why"] else f"{claim['verdict']}: {claim['why']}"
    cells = (word, claim["claim"], claim["paper"], claim["measured"], claim["wanted"])
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"


def copied(source: Path, target: Path) -> None:
    """The files of a report, in place of those that are there."""
    shutil.rmtree(target, ignore_errors=True)
    results_folder(target)
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copy(path, target / path.name)


Names = Annotated[tuple[str, ...], tyro.conf.Positional]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def every(names: Names = (), smoke: Flag = False, quick: Flag = False, jobs: int = 1) -> None:
    """Runs all experiments, or those of some topics or names.

    Args:
        names: Topics or names.
        smoke: Seconds each: that they run.
        quick: About a minute each.
        jobs: How many at once; times are only worth something with one.
    """
    run(names, "smoke" if smoke else "quick" if quick else "full", jobs)


def main() -> None:
    with one_line_errors():
        if len(sys.argv) == 1:
            show()
        else:
            tyro.extras.subcommand_cli_from_dict(
                {"list": show, "all": every, "publish": publish}, description=__doc__
            )


if __name__ == "__main__":
    main()
