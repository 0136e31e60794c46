"""Data set card of an exported pair set, in the form of the Hugging Face Hub."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline import __version__
from pipeline.exports.card import FinishedRun, audited, code_facts, data_facts, judge_and_pairs, reviewed_by
from pipeline.exports.card_text import (
    channels_text,
    code_text,
    knobs_text,
    prepared_text,
    reviewed_text,
    section,
    verdicts_text,
)
from pipeline.exports.hub import headed
from pipeline.exports.pair_files import Pictures, Volumes
from pipeline.exports.pair_rows import columns_of
from pipeline.measures.numbers import Estimate, interval_text, percent
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import MANIFEST, read_json, sha256
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
"""The Hub's names of sizes, by the first number of rows that is too large."""


def pair_set_card(
    name: str,
    run: FinishedRun,
    proposals: ProposalStore,
    pairs: pl.DataFrame,
    files: Pictures | Volumes,
    shards: list[str],
    licence: str,
) -> str:
    """Text of the card of a pair set that is not empty (schema `PAIRS`), which `params.yaml` names.

    `shards` are the names of the shards below `data/`.
    """
    cases = CaseStore(run.cases)
    judge, strategy = judge_and_pairs(name, run.params)
    assert strategy is not None
    content = shards[0].rpartition("-")[2]
    dimensions = "3d" if len(cases.padded) == 3 else "2d"
    head = {
        "license": licence,
        "pretty_name": f"Preference pairs of masks: {name}",
        "task_categories": ["image-segmentation"],
        "size_categories": [next((size for end, size in _SIZES.items() if len(pairs) < end), "n>10M")],
        "tags": ["medical", "preference-learning", "segpref", dimensions],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": f"data/train-*-{content}"}]}],
    }
    parts = [
        f"# Preference pairs of masks: {name}",
        f"One row is a preference: {_who(judge, pairs)} the mask `rejected`. "
        "Both masks are proposals, not labels, and both can be wrong. For research only.",
        section("Read", _reading(files)),
        section("Columns", _columns(files)),
        section("Images and masks", _form(cases, files)),
        section("Counts", _counts(name, run, cases, pairs)),
        section("Origin", _origin(run, cases, judge, strategy)),
        section("Meaning of a pair", _meaning(pairs)),
        section("Reliability of the judge", _believed(name, judge, run)),
        section("Limits", _limits(name, judge, run)),
        section("Versions and hashes", _provenance(name, run, proposals)),
    ]
    return headed(head, "\n\n".join(parts) + "\n")


def _who(judge: dict[str, Any] | None, pairs: pl.DataFrame) -> str:
    by_judge = "a judge gave the mask `chosen` of an image a higher score than"
    reviewers = "reviewers preferred the mask `chosen` of an image to"
    if judge is None:
        return reviewers
    reviewed = (pairs["judge"] == "none").any()
    return f"{reviewers} the mask `rejected` (`judge` is none), or {by_judge}" if reviewed else by_judge


def _reading(files: Pictures | Volumes) -> list[str]:
    return [
        "```python",
        "import numpy as np",
        "from datasets import load_dataset",
        "",
        'pairs = load_dataset("FOLDER", split="train")  # this folder, or its name on the Hub',
        "row = pairs[0]",
        files.reading,
        "differ = (chosen != rejected) & (chosen != 255) & (rejected != 255)",
        "```",
    ]


def _columns(files: Pictures | Volumes) -> list[str]:
    rows = [f"| `{name}` | {column.meaning} |" for name, column in columns_of(files).items()]
    return ["| column | content |", "|---|---|", *rows]


def _form(cases: CaseStore, files: Pictures | Volumes) -> list[str]:
    turned = "RAS" if cases.info["preprocess"]["orientation"] else cases.info["orientation"]
    classes = ", ".join(f"{index} {name}" for index, name in enumerate(cases.class_names))
    return [
        "Images and masks are on the working grid of the run, where the masks were proposed, scored and compared. On "
        "the grid of the source they would be other masks, with other disagreement.",
        "",
        f"- {channels_text(cases.info['channel_names'])}",
        f"- {prepared_text(cases.info['preprocess'])}",
        *([f"- orientation: {turned}"] if turned else []),
        f"- classes: {classes}, 255 unknown",
        f"- {files.text}",
    ]


def _counts(name: str, run: FinishedRun, cases: CaseStore, pairs: pl.DataFrame) -> list[str]:
    drops = read_json(run.pairs / f"{name}.drops.json", "cases", "cases_with_pairs", "dropped")
    of_pairs = cases.table.filter(pl.col("case_id").is_in(pairs["case_id"].unique().implode()))
    groups = "patients or groups" if data_facts(cases, run.params)["groups_stated"] else "cases (no patients stated)"
    dropped = ", ".join(f"{reason} {count}" for reason, count in drops["dropped"].items())
    return [
        f"| pairs | cases | {groups} | cases without a pair |",
        "|---|---|---|---|",
        f"| {len(pairs)} | {len(of_pairs)} | {of_pairs['group'].n_unique()} | "
        f"{drops['cases'] - drops['cases_with_pairs']}{f' ({dropped})' if dropped else ''} |",
    ]


def _origin(run: FinishedRun, cases: CaseStore, judge: dict[str, Any] | None, pairs: dict[str, Any]) -> list[str]:
    data, split = data_facts(cases, run.params), run.params.pairs[pairs["name"]].split
    folder = f", folder `{data['folder']}`" if data["folder"] else ""
    samplers = ", ".join(f"{name} ({sampler.kind})" for name, sampler in run.params.propose.samplers.items())
    truth = "; the judge reads the truth, so the pairs are a ceiling for research"
    ordered = "none, reviewers ordered all pairs"
    if judge is not None:
        ordered = f"{judge['name']} ({judge['kind']}){truth if judge['reads_truth'] else ''}"
    return [
        f"- data: {data['kind']}{folder}; {split} cases",
        *(f"- note on the data: {note}" for note in data["notes"]),
        f"- masks: proposals of the base and of the samplers {samplers or 'none'}",
        f"- judge: {ordered}",
        f"- strategy: {knobs_text(pairs['strategy'])}",
        *reviewed_text(reviewed_by(pairs["name"], run)),
        f"- seed: {run.params.seed}",
    ]


def _meaning(pairs: pl.DataFrame) -> list[str]:
    if pairs["p_correct"].null_count():
        believed = "`p_correct` is null, because no labelled validation cases were there to estimate it."
    else:
        believed = (
            "`p_correct` is the probability that the chosen mask is truly better. It was estimated from the margin, on "
            "pairs of labelled validation cases."
        )
    return [
        "A pair says something about the voxels on which its masks differ, and nothing about the others. The margin "
        f"has the units of this judge, and margins of two judges cannot be compared. {believed}",
    ]


def _believed(name: str, judge: dict[str, Any] | None, run: FinishedRun) -> list[str]:
    audit = audited(judge, name, run)
    if audit is None:
        return ["Not audited: the share of pairs in the wrong order is unknown."]
    return [
        *verdicts_text(audit),
        f"- pairs in the wrong order: {_noise(name, run)}",
        *(f"- warning: {text}" for text in audit["warnings"]),
    ]


def _noise(name: str, run: FinishedRun) -> str:
    """Share of wrong pairs among those that judge and strategy make of validation cases, in words."""
    rows = read_table(run.audit / "pairs.parquet", schema.AUDIT_PAIRS).filter(pl.col("pairs") == name).to_dicts()
    if not rows or rows[0]["noise_rate"] is None:
        return "unknown"
    noise = Estimate.column(rows[0], "noise_rate")
    ends = f" {interval_text(noise, digits=0)}" if interval_text(noise) else ""
    return f"{percent(noise.mean)}{ends} of {rows[0]['mined']} pairs of labelled validation cases"


def _limits(name: str, judge: dict[str, Any] | None, run: FinishedRun) -> list[str]:
    lines = [
        "- for research; no clinical use",
        "- the pairs repeat the errors of their judge; a network that learns them without an anchor can end below the "
        "network that proposed the masks",
        "- cases of one `group` belong together: keep a group on one side of every split",
        "- intensities are prepared: the values of the scanner or camera cannot be recovered",
        "- the set holds no labels: how many of its own pairs are in the wrong order is unknown",
    ]
    if judge is not None and judge["kind"] == "table":
        lines.append("- the scores came from a table, whose origin the run does not know")
    if judge is not None and judge["reads_truth"]:
        lines.append("- the judge reads truth that is not available in practice; compare no practical method with it")
    if run.params.pairs[name].split == "labelled":
        lines.append("- the cases are labelled cases, on which networks that proposed the masks may have been trained")
    return lines


def _provenance(name: str, run: FinishedRun, proposals: ProposalStore) -> list[str]:
    return [
        f"- segpref {__version__}",
        f"- pairs: `{sha256(run.pairs / f'{name}.parquet')}`",
        f"- cases (SHA-256 of their manifest): `{sha256(run.cases / MANIFEST)}`",
        f"- proposals (SHA-256 of their manifest): `{sha256(proposals.folder / MANIFEST)}`",
        f"- {code_text(code_facts())}",
    ]
