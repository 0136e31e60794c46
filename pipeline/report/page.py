"""The page: all sections in order, rendered into one HTML file that needs no other file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.answer import answer, gains_table
from pipeline.report.arms import Results
from pipeline.report.blocks import Section, Table
from pipeline.report.calibration import calibration
from pipeline.report.cases_and_proposals import proposals, splits
from pipeline.report.curves import training
from pipeline.report.example_pairs import examples
from pipeline.report.headline import Headline
from pipeline.report.judges import judges
from pipeline.report.pair_sets import pair_sets
from pipeline.report.promotion import promotion
from pipeline.report.review import review
from pipeline.report.run import Run, RunWarning, kinds_of
from pipeline.report.thresholds import thresholds
from pipeline.report.top_picks import picks
from pipeline.report.worst_cases import worst_cases

SECTIONS = (
    promotion,
    splits,
    proposals,
    thresholds,
    judges,
    pair_sets,
    review,
    calibration,
    picks,
    examples,
    training,
    worst_cases,
)
"""Sections in order, after the results on test. A section that does not apply to a run returns None."""


@dataclass(frozen=True)
class Head:
    """What the page shows before its sections."""

    headline: Headline
    gains: Table | None
    """Every arm against the base, continued training and the best fixed proposal. None without a student."""
    facts: Mapping[str, str]
    warnings: Sequence[RunWarning] = ()


def write_report(run: Run, out: Path) -> None:
    """Write `index.html`. Equal inputs give equal bytes. Raises `BadInput` for missing results."""
    info = run.cases.info
    facts = {
        "data": info["kind"],
        "classes": ", ".join(run.cases.class_names),
        "channels": ", ".join(info["channel_names"]),
        "cases": str(len(run.cases.all)),
        "students": str(len(run.params.students)),
    }
    results = Results.of(run)
    sections = [answer(run, results), *(section for make in SECTIONS if (section := make(run)) is not None)]
    head = Head(Headline.of(run, results), gains_table(run, results), facts, run.warnings)
    page = render(sections, head)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(page, encoding="utf-8", newline="\n")


def _unbroken(value: Any) -> Any:
    """Text in which no line break separates a number from its per cent sign."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) else value


def _whole(text: str) -> str:
    """Text in which no line break parts an interval, or a number from its interval."""
    return re.sub(r"(?<=\d) (?=\[)|(?<=\d,) (?=[-+\N{MINUS SIGN}]?\d)", "\N{NO-BREAK SPACE}", text)


def render(sections: Sequence[Section], head: Head) -> str:
    """HTML of the page. Every text is escaped, since case ids and class names are data."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_unbroken,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["whole"] = _whole
    kinds = kinds_of(head.warnings)
    return environment.get_template("page.html").render(sections=sections, head=head, kinds=kinds)
