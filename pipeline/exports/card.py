"""Facts of a model card: training data and objective of a model, its test results, and the audit of its judge."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline import __version__
from pipeline.errors import BadInput
from pipeline.judges.consensus import reads_truth
from pipeline.judges.kinds.expert import EXPERT_FILE
from pipeline.promotion.record import PromotionRecord
from pipeline.segmenter.imported.nnunet_origin import without_origin
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.student_record import StudentRecord
from pipeline.segmenter.validation_curve import ValidationCurve
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import MANIFEST, read_json, sha256
from pipeline.store.tables import made_by, read_table

if TYPE_CHECKING:
    from pipeline.exports.predict import ReadyModel
    from pipeline.params import Params

CARD, FACTS = "MODEL_CARD.md", "model_card.json"
_LIBRARY = Path(__file__).parents[1]
_ROOT = _LIBRARY.parent
_PACKAGES = ("torch", "monai", "numpy", "scipy", "scikit-image")


@dataclass(frozen=True)
class FinishedRun:
    """Folders of a run that a model card reads, with the names of `dvc.yaml`. The card says which parts are missing."""

    params: Params
    cases: Path = Path("data/cases")
    pairs: Path = Path("data/pairs")
    audit: Path = Path("audit")
    evaluation: Path = Path("evaluation")
    base: Path = Path("models/base")
    history: Path = Path("history")
    judge_models: Path = Path("models/judges")


def card_facts(name: str, found: ReadyModel, run: FinishedRun, licence: str | None = None) -> dict[str, Any]:
    """Content of `model_card.json`; a part of the run that is missing is null, and so is a licence that is not stated.

    The results are those of the model `name`. Raises `BadInput` if the folder holds another model, or a student that
    learned from other pairs than those of the run.
    """
    cases = CaseStore(run.cases)
    folder = found.model.folder
    record = StudentRecord.of(folder)
    own = record.name if record is not None else "base" if (folder / MODELS).is_file() else name
    if own != name:
        raise BadInput(
            f"{folder}: expected the model '{name}', whose results the card shows, found '{own}'; export it as "
            f"'{own}', or give the folder of '{name}' by --model"
        )
    judge, pairs = (None, None) if record is None else judge_and_pairs(record.pairs, run.params)
    pairs_file = None if pairs is None else run.pairs / f"{pairs['name']}.parquet"
    if record is not None and pairs_file is not None and pairs_file.is_file():
        _check_pairs(record, pairs_file, folder, run)
    return {
        "name": name,
        "license": licence,
        "weights": found.model.name,
        "network": asdict(without_origin(found.model.architecture)),
        "offsets": list(found.offsets),
        "input": found.input.model_dump(mode="json"),
        "data": data_facts(cases, run.params),
        "training": {"objective": {"kind": "base"}, **_base_facts(folder, run)} if record is None else record.content,
        "base": _base_facts(run.base, run) if (run.base / MODELS).is_file() else None,
        "all_seen_known": Seen.of(folder).complete,
        "judge": judge,
        "pairs": pairs,
        "review": None if record is None else reviewed_by(record.pairs, run),
        "metrics": _test_results(run.evaluation / f"{name}.json"),
        "promotion": _promotion(folder),
        "audit": audited(judge, None if record is None else record.pairs, run),
        "versions": {
            "python": platform.python_version(),
            "segpref": __version__,
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
        "hashes": {
            "cases_manifest": sha256(run.cases / MANIFEST),
            "pairs": sha256(pairs_file) if pairs_file is not None and pairs_file.is_file() else None,
            "weights": sha256(found.model.weights),
            "code": code_facts(),
        },
    }


def data_facts(cases: CaseStore, params: Params) -> dict[str, Any]:
    """Kind and folder name of the data set, numbers of cases, groups and labels per split, sites, and notes.

    `groups_stated` is false if every case is its own group, which is so without patients and exams.
    """
    counts = (pl.len().alias("cases"), pl.col("group").n_unique().alias("groups"), pl.col("has_label").sum())
    by_split = cases.table.group_by("split").agg(*counts)
    sites = cases.table["site"].drop_nulls().unique().sort().to_list()
    return {
        "kind": cases.info["kind"],
        # The name alone, since a path would reveal where this machine keeps the data.
        "folder": params.data.path.name if cases.info["files"] else None,
        "splits": {row["split"]: {k: row[k] for k in ("cases", "groups", "has_label")} for row in by_split.to_dicts()},
        "groups_stated": bool((cases.table["group"] != cases.table["case_id"]).any()),
        "sites": sites,
        "notes": cases.info["notes"],
    }


def _base_facts(folder: Path, run: FinishedRun) -> dict[str, Any]:
    """Origin of the base: the knobs of `base`, the record of the import (null for a base trained in the run), and the
    best and last step on validation (null without a history of training)."""
    models = _json(folder / MODELS) or {}
    knobs = None if run.params.base is None else run.params.base.model_dump(mode="json")
    file = run.history / "base.csv"
    curve = ValidationCurve.of_base(file) if file.is_file() else None
    steps = None if curve is None else {"best": curve.best, "last": curve.last}
    return {"base": knobs, "imported": models.get("imported"), "steps_on_validation": steps}


def judge_and_pairs(name: str, params: Params) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Judge and strategy of a pair set by `params.yaml`; both None for a pair set without pairs or of another run.

    The judge is None if all pairs are of reviewers.
    """
    knobs = params.pairs.get(name)
    if knobs is None or knobs.strategy.kind == "none":
        return None, None
    pairs = {"name": name, "strategy": knobs.strategy.model_dump(mode="json")}
    if knobs.judge == "none":
        return None, pairs
    known = {**params.scored, **params.consensus}
    judge = {
        "name": knobs.judge,
        "kind": known[knobs.judge].kind,
        "knobs": known[knobs.judge].model_dump(mode="json"),
        "reads_truth": reads_truth(knobs.judge, params.judges, params.consensus),
    }
    return judge, pairs


def reviewed_by(name: str, run: FinishedRun) -> dict[str, Any] | None:
    """Numbers of answers and reviewers behind a pair set. None without such answers.

    `pairs`: pairs that reviewers ordered, their answers and reviewers. `experts`: answers and reviewers that each
    expert learned from, if the judge of the pair set is one, or combines some.
    """
    knobs = run.params.pairs.get(name)
    if knobs is None:
        return None
    drops = _json(run.pairs / f"{name}.drops.json") or {}
    entry = run.params.consensus.get(knobs.judge)
    experts = {}
    for judge in (knobs.judge,) if entry is None else entry.judges:
        if judge in run.params.experts:
            learned = _json(run.judge_models / judge / EXPERT_FILE) or {}
            experts[judge] = {key: learned.get(key) for key in ("answers", "reviewers")}
    found = {"pairs": drops.get("reviewed"), "experts": experts}
    return found if any(found.values()) else None


def check_mined(file: Path, name: str, params: Params, advice: str) -> None:
    """Raise `BadInput` unless `params.yaml` still has the knobs by which the pairs in the file were mined."""
    if made_by(file) != repr(params.pairs[name]):
        raise BadInput(
            f"{file}: expected the pairs of `pairs.{name}` in params.yaml, found pairs of {made_by(file)}; the card "
            f"would name another judge than that of the pairs; {advice}"
        )


def _check_pairs(record: StudentRecord, file: Path, folder: Path, run: FinishedRun) -> None:
    """Raise `BadInput` unless the pair set of the run is the pair set that the student learned from."""
    advice = f"run `dvc repro train@{record.name} evaluate@{record.name}`, then export again"
    check_mined(file, record.pairs, run.params, advice)
    if record.pairs_sha256 not in (None, found := sha256(file)):
        raise BadInput(
            f"{folder}: the student learned from other pairs than {file} (expected SHA-256 {record.pairs_sha256}, "
            f"found {found}); the card would show the audit of the wrong pairs; {advice}"
        )


def audited(judge: dict[str, Any] | None, pairs: str | None, run: FinishedRun) -> dict[str, Any] | None:
    """Verdicts on the judge and the pair set, and the warnings about this pair set or about all pair sets.

    None without an audit.
    """
    summary = _json(run.audit / "summary.json")
    if summary is None:
        return None
    verdicts: dict[str, Any] = {"judge": None, "pairs": None}
    for key, table, name in (
        ("judge", schema.AUDIT_JUDGES, judge and judge["name"]),
        ("pairs", schema.AUDIT_PAIRS, pairs),
    ):
        file = run.audit / ("judges.parquet" if key == "judge" else "pairs.parquet")
        if name is not None and file.is_file():
            said = read_table(file, table).filter(pl.col(key) == name)["verdict"].to_list()
            verdicts[key] = said[0] if said else None
    return {**verdicts, "warnings": [w["text"] for w in summary["warnings"] if w["pairs"] in (None, pairs)]}


def _promotion(folder: Path) -> dict[str, str] | None:
    """Why the student was promoted, and what the choice is not corrected for; None for other models."""
    record = PromotionRecord.of(folder)
    return None if record is None else {"reason": record.reason, "limits": record.limits}


def code_facts() -> dict[str, Any]:
    """SHA-256 of the library's files, the git commit, and whether the library differs from the commit (`dirty`).

    `commit` and `dirty` are null if the project is no git repository.
    """
    files = sorted(_LIBRARY.rglob("*.py"))
    content = "".join(f"{path.relative_to(_ROOT)} {sha256(path)}\n" for path in files)
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "pipeline", "stages")
    return {
        "pipeline": hashlib.sha256(content.encode()).hexdigest(),
        "commit": commit,
        "dirty": None if commit is None else bool(changed),
    }


def _git(*arguments: str) -> str | None:
    """Output of a git command in the project's folder; None if the folder is no repository of its own or git fails."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _test_results(file: Path) -> dict[str, Any] | None:
    """Summary of the test results. None for a model that was not measured: it has no table `NAME.parquet` either.

    Raises `BadInput` for a table without its summary, as runs of older versions have.
    """
    return read_json(file) if file.with_suffix(".parquet").is_file() else _json(file)


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
