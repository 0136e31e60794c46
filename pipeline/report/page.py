"""The page: all sections in order, rendered into one HTML file that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.answer import answer
from pipeline.report.blocks import Section
from pipeline.report.calibration import calibration
from pipeline.report.cases_and_proposals import proposals, splits
from pipeline.report.curves import training
from pipeline.report.example_pairs import examples
from pipeline.report.judges import judges
from pipeline.report.pair_sets import pair_sets
from pipeline.report.promotion import promotion
from pipeline.report.run import Run, RunWarning
from pipeline.report.thresholds import thresholds
from pipeline.report.top_picks import picks
from pipeline.report.worst_cases import worst_cases

SECTIONS = (
    answer,
    promotion,
    splits,
    proposals,
    thresholds,
    judges,
    pair_sets,
    calibration,
    picks,
    examples,
    training,
    worst_cases,
)
"""Sections in order. A section that does not apply to a run returns None."""


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
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    page = render(sections, facts, run.promotion.reason, run.warnings)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(page, encoding="utf-8", newline="\n")


def _unbroken(value: Any) -> Any:
    """Text in which no line break separates a number from its per cent sign."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) else value


def render(sections: list[Section], facts: Mapping[str, Any], decision: str, warnings: Sequence[RunWarning]) -> str:
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
    return environment.get_template("page.html").render(
        sections=sections, facts=facts, decision=decision, warnings=warnings
    )
