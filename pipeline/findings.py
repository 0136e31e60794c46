"""What came of a stage: one line with numbers and units, read from the outputs of the stage.

No result follows from these texts, so the texts have a file of their own: another wording reruns no stage. A number
that is unknown is written as `NO_VALUE`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.audit.verdicts import AuditRow, percent_text, points_text
from pipeline.cases.preprocess import Preprocess
from pipeline.measures.numbers import NO_VALUE, Estimate, interval_text, percent, points
from pipeline.provenance import PLANS
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.student_record import StudentRecord
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import read_json
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import Evaluation
    from pipeline.report.run import Run


def provenance_findings(files: Sequence[Path]) -> str:
    """Numbers of stages and entries, and of the code files that they use."""
    code = {name for file in files for name in read_json(file)} - {PLANS}
    return f"{_count(len(files), 'stage')} and entries, {_count(len(code), 'file')} of code"


def prepare_findings(cases: CaseStore) -> str:
    """Cases, patients if they are stated, masks, splits, channels, and sizes of the smallest and the largest image."""
    table = cases.table
    splits = ", ".join(f"{split} {(table['split'] == split).sum()}" for split in schema.SPLITS)
    stated = (table["group"] != table["case_id"]).any()
    patients = f" of {_count(table['group'].n_unique(), 'patient')}" if stated else ""
    sizes = _sizes([case.original_shape for case in cases.all])
    if any(case.resampled for case in cases.all):
        sizes += f", resampled to {_sizes([case.shape for case in cases.all])}"
    return (
        f"{_count(len(table), 'case')}{patients}, {table['has_label'].sum()} with mask: {splits}; "
        f"{_count(len(cases.info['channel_names']), 'channel')}; {sizes}"
    )


def plans_findings(cases: CaseStore) -> str:
    """The block that `preprocess: plans` stands for, as a line of `params.yaml`."""
    block = Preprocess.model_validate_json(json.dumps(cases.info["preprocess"]))
    return f"`plans` is preprocess: {json.dumps(block.stated)}"


def check_findings(notes: Sequence[str]) -> list[str]:
    """Number of notes, then each note."""
    return [_count(len(notes), "note"), *(f"note: {note}" for note in notes)]


def base_findings(folder: Path, history: Path) -> str:
    """Models by role, and the best validation Dice of the base with its step."""
    models = read_json(folder / MODELS, "members", "folds", "snapshots")
    base = pl.read_csv(history, schema_overrides={"best": pl.String()}).filter(pl.col("model") == "base")
    if base.is_empty():
        return "no base: all masks are imported"
    folds = models["folds"]
    of_fold = max((len(fold["members"]) for fold in folds.values()), default=0)
    parts = [
        _count(len(models["members"]), "member"),
        _count(len(folds), "fold") + (f" of {_count(of_fold, 'member')}" if of_fold else ""),
        *([_count(len(models["snapshots"]), "snapshot")] if models["snapshots"] else []),
    ]
    best = base.filter(pl.col("best") == "true")
    dice, last = points(_first(best, "validation_dice")), _first(base.sort("step", descending=True), "step")
    if imported := models.get("imported"):
        return f"imported ({imported['kind']}), {', '.join(parts)}; validation Dice {dice} points"
    best_step = _first(best, "step")
    return f"base, {', '.join(parts)}; best validation Dice of the base {dice} points at step {best_step} of {last}"


def propose_findings(proposals: ProposalStore, out_of_fold: ProposalStore) -> str:
    """Samplers, proposals per case, cases and mean number of distinct masks, also of labelled cases out of fold."""
    samplers = set(proposals.table["sampler"])
    by = _count(len(samplers - {"base"}), "sampler") + (" and the base" if "base" in samplers else "")
    text = f"{by}: {_drawn(proposals.table)}"
    return text if out_of_fold.table.is_empty() else f"{text}; out of fold {_drawn(out_of_fold.table)}"


def judge_findings(scores: Path) -> str:
    """Scored proposals, their cases, and the share of abstentions."""
    table = read_table(scores, schema.SCORES)
    share = table["score"].null_count() / len(table) if len(table) else None
    return (
        f"{_count(table['score'].count(), 'score')} of {_count(table['case_id'].n_unique(), 'case')}, abstains on "
        f"{percent(share)} of the proposals"
    )


def panel_findings(panel: Path, judges: int, consensus: int) -> str:
    """Proposals, cases, judges and consensus entries, and proposals with a true Dice."""
    rows = pl.scan_parquet(panel).select("case_id", "true_dice")
    count, cases, true = (
        rows.select(pl.len(), pl.col("case_id").n_unique(), pl.col("true_dice").count().alias("true")).collect().row(0)
    )
    entries = "entry" if consensus == 1 else "entries"
    return (
        f"{_count(count, 'proposal')} of {_count(cases, 'case')}; scores of {_count(judges, 'judge')} and {consensus} "
        f"consensus {entries}; true Dice of {_count(true, 'validation proposal')}"
    )


def audit_findings(folder: Path) -> list[str]:
    """Headroom, warnings about all pair sets, a line per judge, and a line per pair set with its warnings."""
    summary = read_json(folder / "summary.json", "warnings", "headroom")
    warnings = [(warning["pairs"], warning["text"]) for warning in summary["warnings"]]
    measured = f"{_count(summary['validation_cases'], 'validation case')} of {_count(summary['groups'], 'patient')}"
    judges = read_table(folder / "judges.parquet", schema.AUDIT_JUDGES)
    pairs = read_table(folder / "pairs.parquet", schema.AUDIT_PAIRS)
    return [
        f"{measured}; {summary['headroom']['verdict']}",
        *(f"warning: {text}" for name, text in warnings if name is None),
        *(f"judge {row['judge']}: {row['verdict'] or NO_VALUE}" for row in judges.iter_rows(named=True)),
        *(_of_pair_set(row, warnings) for row in pairs.iter_rows(named=True)),
        *_of_answers(folder, summary.get("review")),
    ]


def _of_answers(folder: Path, review: Mapping[str, Any] | None) -> list[str]:
    """State of the review, and a line per judge and pair set. Nothing without answers."""
    if review is None:
        return []
    answers = read_table(folder / "answers.parquet", schema.AUDIT_ANSWERS)
    titles = {"judge": "judge", "pairs": "pair set"}
    return [
        f"{_count(review['answers'], 'answer')} of {_count(len(review['reviewers']), 'reviewer')}; "
        f"{review['same']} of {_count(review['repeats'], 'pair')} shown twice with the same answer",
        *(f"answers on {titles[row['kind']]} {row['name']}: {row['verdict']}" for row in answers.iter_rows(named=True)),
    ]


def _of_pair_set(row: AuditRow, warnings: Sequence[tuple[str | None, str]]) -> str:
    name = row["pairs"]
    start = f"pair set '{name}': "
    warned = [text.removeprefix(start) for pairs, text in warnings if pairs == name]
    said = [f"warning: {'; '.join(warned)}"] if warned else []
    if row["mined"]:
        favours = {"RN-DPO": "RN-DPO", "DPO": "DPO"}.get(row["verdict"], "neither RN-DPO nor DPO")
        wrong = f"{percent_text(row, 'noise_rate')} of its validation pairs are wrong"
        said.insert(0, f"{row['mined']} pairs tried; {wrong}; the noise favours {favours}")
    return f"pair set {name}: {'; '.join(said) or 'nothing was mined on validation'}"


def mine_findings(drops: Path, strategy: str) -> str:
    """Pairs, cases with pairs, and the number of cases without a pair by reason."""
    if strategy == "none":
        return "no pairs: the strategy is none"
    found = read_json(drops, "pairs", "cases", "cases_with_pairs", "dropped")
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(found["dropped"].items()))
    return f"{_count(found['pairs'], 'pair')} of {found['cases_with_pairs']} of {_count(found['cases'], 'case')}" + (
        f"; without a pair: {reasons}" if reasons else ""
    )


def train_findings(folder: Path, history: Path, start: str) -> str:
    """Validation Dice at the start, at the best and at the last step. `start` names the weights that were trained."""
    record = StudentRecord.of(folder)
    assert record is not None
    rows = pl.read_csv(history, infer_schema_length=None).sort("step")
    first = _dice_at(rows, 0)
    if not record.steps:
        made = f"proposal '{record.proposal}'" if record.slot is not None else f"weights of '{start}'"
        return f"no training, {made}{_offsets(record)}; validation Dice {first} points"
    text = (
        f"from '{start}': validation Dice {first} points at the start, best {_dice_at(rows, record.best_step)} at step "
        f"{record.best_step}, last {_dice_at(rows, record.steps)} at step {record.steps}"
    )
    pairs = "" if record.pairs_mined is None or not record.pairs_mined else f"; {_count(record.pairs_mined, 'pair')}"
    stopped = f"; stopped: {record.stopped}" if record.stopped else ""
    mixed = "" if record.interpolated is None else f"; then mixed with the base, share {record.interpolated:g}"
    return f"{text}{pairs}{stopped}{mixed}{_offsets(record)}"


def _offsets(record: StudentRecord) -> str:
    if record.threshold_note is not None:
        return f"; {record.threshold_note}"
    if record.offsets is None or not any(record.offsets):
        return ""
    return f"; logits shifted by {', '.join(f'{offset:+.2f}' for offset in record.offsets)}"


def _dice_at(rows: pl.DataFrame, step: int) -> str:
    return points(_first(rows.filter(pl.col("step") == step), "validation_dice"))


def evaluate_findings(content: Mapping[str, Any], split: str = "test") -> str:
    """Mean Dice and gain over the base with their 95 % intervals, from a summary of `evaluate.summary`."""
    cases, groups = _count(content["cases"], f"{split} case"), content["groups"]
    patients = "" if groups == content["cases"] else f" of {_count(groups, 'patient')}"
    text = f"Dice {_estimate(content['dice'])} points on {cases}{patients}"
    if "gain_over_base" in content:
        text += f", {_estimate(content['gain_over_base']['dice'], signed=True)} points over the base"
    if content["unmeasured"]:
        text += f"; {_count(content['unmeasured'], 'case')} not measured, whose truth is unknown everywhere"
    return text


def validate_findings(table: Path, base: Path | None, knobs: Evaluation) -> str:
    """The same on validation cases, from the tables of a model and of the base."""
    from pipeline.evaluation.evaluate import summary

    rows, reference = (None if file is None else read_table(file, schema.EVALUATION) for file in (table, base))
    assert rows is not None
    return evaluate_findings(summary(rows, reference, knobs), "validation")


def report_findings(run: Run, page: Path) -> str:
    """Base, promoted student with its gain, the judge with the highest lift, and the path of the page."""
    base, *students = run.arms
    parts = [f"test Dice of the base {_estimate(base.metrics['dice'])} points"]
    promoted = next((arm for arm in students if arm.name == run.promotion.promoted), None)
    if promoted is None:
        parts.append("no student was promoted")
    else:
        gain = _estimate(promoted.metrics["gain_over_base"]["dice"], signed=True)
        parts.append(f"promoted {promoted.name}: {_estimate(promoted.metrics['dice'])}, {gain} over the base")
    judges = run.audited("judges", schema.AUDIT_JUDGES).filter(pl.col("lift").is_not_null())
    usable = [row for row in judges.iter_rows(named=True) if not run.reads_truth(row["judge"])]
    if usable:
        best = max(usable, key=lambda row: row["lift"])
        parts.append(f"judge with the highest lift: {best['judge']}, {points_text(best, 'lift')} Dice points")
    else:
        parts.append("no judge was measured")
    return f"{'; '.join(parts)}; {page}"


def _count(number: int, noun: str) -> str:
    """A number with its noun: `1 case`, `2 cases`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _drawn(table: pl.DataFrame) -> str:
    cases = table["case_id"].n_unique()
    per_case = len(table) // cases if cases else 0
    distinct = table["duplicate_of"].null_count() / cases if cases else 0.0
    return f"{_count(per_case, 'proposal')} of each of {_count(cases, 'case')}, {distinct:.1f} distinct on average"


def _sizes(shapes: Sequence[Sequence[int]]) -> str:
    """Smallest and largest shape by number of voxels: `190x335 to 946x604 pixels`."""
    ordered = sorted(shapes, key=lambda shape: (prod(shape), tuple(shape)))
    ends = dict.fromkeys("x".join(map(str, shape)) for shape in (ordered[0], ordered[-1]))
    return f"{' to '.join(ends)} {'pixels' if len(ordered[0]) == 2 else 'voxels'}"


def _first(rows: pl.DataFrame, column: str) -> Any:
    """First value of a column; None without rows."""
    return rows[column][0] if len(rows) else None


def _estimate(entry: Mapping[str, Any], signed: bool = False) -> str:
    """A Dice or a gain in points with its interval: `81.2 [79.9, 82.6]`, or `81.2 [—]` without an interval."""
    found = Estimate.read(entry)
    return f"{points(found.mean, signed)} {interval_text(found, signed=signed) or f'[{NO_VALUE}]'}"
