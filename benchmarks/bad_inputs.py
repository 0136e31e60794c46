"""Bad inputs of every kind, each with the message that a user gets: the table in `docs/results/bad_inputs.md`.

Every input is a small data set, file or project in a temporary folder, with one fault. The stage that a user would run
runs on it. An input passes if the exit code is 2, if every error line names the place, and if no output was written.
Odd inputs that are right run too, and must give the voxels that were written.

    python -m benchmarks.bad_inputs --out docs/results/bad_inputs.md
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.faults import attached, imported_masks, knobs, models, new_images, pictures, projects, tables, volumes
from benchmarks.faults.entry import Bad, Good, Projects, run_stage
from benchmarks.faults.good import GOOD
from pipeline.store.manifest import sha256

BAD = [
    *(*pictures.IMAGES, *pictures.MASKS, *volumes.NIFTI, *volumes.DECATHLON, *volumes.NNUNET, *attached.ATTACHED),
    *(*tables.TABLE, *tables.SPLIT, *tables.SCORED, *imported_masks.IMPORTED, *models.WEIGHTS, *models.FOREIGN),
    *(*knobs.OF_FILE, *knobs.OF_KEYS, *knobs.OF_DATA, *new_images.NEW),
    *(*projects.MISSING, *projects.STORES, *projects.AT_ONCE),
]
_SUMMARY = re.compile(r"^error: [\w ]+: \d+ of \d+ \w+ failed; finished \w+ are kept$")
"""Last line of a stage that works on shards. The lines before it name the places."""
_LINES = 3
"""Lines of a message that the page shows. A message has a line for each case with the fault."""
PAGE = """# Bad inputs and their messages

*Reference: inputs with a fault, and the message that each one gets.*

`python -m benchmarks.bad_inputs --out docs/results/bad_inputs.md` makes every input below in a temporary folder, runs
the stage on the input, and writes this page. That takes about two minutes on one core. An input passes if the stage
ends with exit code 2 and without a traceback, if every error line names the place of the fault, and if the stage has
written no output. {bad_passed} of {bad} bad inputs pass. {good_passed} of {good} inputs that are odd but right are read
as what was written. Paths are relative to the folder of `params.yaml`. N stands for the number of a process. At most
three lines of a message are shown.
"""


@dataclass(frozen=True)
class Outcome:
    """What a stage did with an input."""

    code: int
    message: str
    """Error lines, with paths relative to the project."""
    faults: tuple[str, ...]
    """Reasons why the input does not pass. Empty if it passes."""

    @property
    def passed(self) -> bool:
        return not self.faults


def _files(folder: Path) -> set[tuple[Path, str]]:
    """Files of a project without unfinished work, each with the hash of its content.

    The store of the labelled cases is left out: `propose` finishes this store before it begins with the other cases.
    """
    paths = (path for path in folder.rglob("*") if path.is_file() and not {".work", "out_of_fold"} & set(path.parts))
    return {(path, sha256(path)) for path in paths}


def tried(bad: Bad, projects: Projects) -> Outcome:
    """The outcome of a bad input in a new project."""
    with projects.copy(bad) as project:
        bad.make()
        before = _files(project)
        with bad.during():
            code, said, crashed = run_stage(bad.line)
        written = sorted({path.relative_to(project).as_posix() for path, *_ in _files(project) ^ before})
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    shown = "\n".join(line.removeprefix("error: ") for line in lines if not _SUMMARY.match(line))
    shown = re.sub(r"\bprocess \d+", "process N", shown.replace(f"{project}/", ""))
    faults = [
        f"exit code {code}" if code != 2 else "",
        f"traceback: {crashed}" if crashed else "",
        "traceback in the message" if "Traceback" in said or re.search(r"\(\w+\.py:\d+\)", shown) else "",
        "" if lines else f"no error line, but: {said[-200:]!r}",
        *(f"no place in: {line}" for line in lines if not _SUMMARY.match(line) and bad.place not in line),
        f"written: {', '.join(written)}" if written else "",
    ]
    return Outcome(code, shown, tuple(filter(None, faults)))


def right(good: Good, projects: Projects) -> Outcome:
    """The outcome of an odd input in a new project."""
    with projects.copy(good):
        expected = good.make()
        code, said, crashed = run_stage(good.line)
        faults = [f"exit code {code}: {crashed or said.strip()}"] if code else []
        for name, read, wanted in [] if code else expected:
            found = read()
            if found.shape != wanted.shape or not np.array_equal(found, wanted):
                faults.append(f"other values: {name}")
    return Outcome(code, "", tuple(faults))


def run_all(bad: Sequence[Bad], good: Sequence[Good]) -> tuple[list[Outcome], list[Outcome]]:
    """Outcomes of the inputs in their order."""
    with tempfile.TemporaryDirectory() as folder:
        projects = Projects(Path(folder).resolve())
        return [tried(one, projects) for one in bad], [right(one, projects) for one in good]


def page(bad: Sequence[Outcome], good: Sequence[Outcome]) -> str:
    """The page with a table per kind."""
    counts = {
        "bad": len(bad),
        "bad_passed": sum(one.passed for one in bad),
        "good": len(good),
        "good_passed": sum(one.passed for one in good),
    }
    lines = [PAGE.format(**counts)]
    for kind in dict.fromkeys(one.kind for one in BAD):
        lines += [f"## {kind}", "", "| input | stage | exit code | passes | message |", "|---|---|---|---|---|"]
        for one, outcome in zip(BAD, bad, strict=True):
            if one.kind == kind:
                passes = "yes" if outcome.passed else f"no: {_cell('; '.join(outcome.faults))}"
                stage = one.line.split()[0]
                lines.append(f"| {one.what} | `{stage}` | {outcome.code} | {passes} | {_cell(outcome.message)} |")
        lines.append("")
    lines += ["## Odd inputs that are right", "", "| input | stage | passes |", "|---|---|---|"]
    for one, outcome in zip(GOOD, good, strict=True):
        passes = "yes" if outcome.passed else f"no: {_cell('; '.join(outcome.faults))}"
        lines.append(f"| {one.what} | `{one.line.split()[0]}` | {passes} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text of a cell: its first lines as code, in which only the mark between cells is escaped."""
    lines = text.splitlines()
    shown = [f"`` {line} ``".replace("|", "\\|") for line in lines[:_LINES]]
    more = [f"and {len(lines) - _LINES} further lines"] if len(lines) > _LINES else []
    return "<br>".join([*shown, *more])


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Page to write.")
def main(out: Path) -> None:
    bad, good = run_all(BAD, GOOD)
    out.write_text(page(bad, good))
    for one, outcome in [*zip(BAD, bad, strict=True), *zip(GOOD, good, strict=True)]:
        for fault in outcome.faults:
            print(f"{one.kind}: {one.what}: {fault}", file=sys.stderr)
    if not all(outcome.passed for outcome in (*bad, *good)):
        sys.exit("not all inputs pass")


if __name__ == "__main__":
    main()
