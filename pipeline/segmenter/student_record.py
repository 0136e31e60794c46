"""Record of a student, `student.json` beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.store.manifest import read_record, write_json

STUDENT_FILE = "student.json"


def anchor_terms(anchor: Mapping[str, Any] | None) -> str:
    """Terms of an anchor with their weights, such as `imitate mean fitted 0.5, supervised 1`; `none` without a term."""
    weights = {}
    for term, value in sorted((anchor or {}).items()):
        if isinstance(value, Mapping):
            weights[f"{term} {value['proposal']}"] = value["weight"]
        elif value:
            weights[term] = value
    return ", ".join(f"{term} {weight:g}" for term, weight in weights.items()) or "none"


class StudentRecord(BaseModel):
    """Knobs of a student, and results of its training.

    Fields that are not set are left out of the file, because they belong to some kinds of students only. An objective
    may add numbers of its own.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str
    """Name of the student."""
    pairs: str
    """Name of the pair set."""
    pairs_sha256: str | None = None
    """SHA-256 of the pair set that the student learned from; null for objectives without pairs."""
    objective: dict[str, Any]
    """Knobs of the objective."""
    anchor: dict[str, Any] | None
    """Knobs of the anchor; null without an anchor."""
    best_step: int
    """Step with the best validation Dice."""
    late: tuple[str, ...]
    """Names of the weights of the last fifth of the evaluations. The mean of their results is the sustained result."""
    steps: int
    """Number of training steps; 0 for an arm without training."""
    offsets: tuple[float, ...] | None
    """Offsets on the logits of the foreground classes in every prediction of the student; null: none."""
    thresholds: tuple[float, ...] | None = None
    """Thresholds of the foreground classes that `offsets` stand for, if they were fitted for a student."""
    threshold_note: str | None = None
    """Reason why no threshold was fitted."""
    slot: int | None
    """Slot of the proposal that is the arm's answer for every case. An arm with a slot has no weights."""
    proposal: str | None = None
    """Sampler and setting of the proposal in `slot`."""
    labelled: int | None = None
    """Number of labelled cases of training, for arms that learn from more labels than the labelled split."""
    stopped: str | None = None
    """Reason of label-free stopping; null if label-free stopping did not end training before the last step."""
    interpolated: float | None = None
    """Share of the student's weights in their interpolation with the base; null without interpolation."""
    pairs_mined: int | None = None
    """Number of pairs, with the pairs of the groups that are held out for stopping."""
    images: int | None = None
    """Number of pool images in training."""
    beta_own: float | None = None
    """Factor of delta / N(D) in the loss, where N(D) is not rescaled to match other normalisers."""
    mean_disagreement: float | None = None
    """Mean size |D| of the disagreement regions of the pairs, in voxels."""
    aimed_shift: float | None = None
    """Shift delta / N of a pair at which the slope of the link is 0, where N is a matched N(D). With the normaliser
    `region`, the shift is the mean logit shift on D. Null if the shift is unbounded or differs by pair."""
    base_margin_on_disagreement: float | None = None
    """Median over D of the difference between the base's two largest logits."""
    flipped_share: float | None = None
    """Share of D on which the student predicts another class than the base."""

    @classmethod
    def of(cls, folder: Path) -> StudentRecord | None:
        """Record in a model folder. None for a model that is no student. Raises `BadInput` for other content."""
        return read_record(
            cls, folder / STUDENT_FILE, "the record of a student", "train the student again with `dvc repro`"
        )

    @property
    def content(self) -> dict[str, Any]:
        """Content of the file, without fields that are not set."""
        return self.model_dump(mode="json", exclude_unset=True)

    def save(self, folder: Path) -> None:
        """Write `student.json`."""
        write_json(folder / STUDENT_FILE, self.content)
