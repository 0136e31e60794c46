"""The record beside a student's weights: `student.json`, typed, written and read in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import BadInput
from pipeline.store.manifest import write_json

STUDENT_FILE = "student.json"


class StudentRecord(BaseModel):
    """Knobs of a student and how its training ended.

    Fields without a value are left out of the file: each belongs to some kinds of students only. An objective may add
    numbers of its own.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str
    pairs: str
    """Name of the pair set."""
    objective: dict[str, Any]
    """Knobs of the objective."""
    anchor: dict[str, Any] | None
    """Knobs of the anchor."""
    best_step: int
    """Step with the best validation Dice."""
    late: tuple[str, ...]
    """Names of the weights of the last fifth of the evaluations: their mean is the sustained result."""
    steps: int
    """Steps that were trained; 0 for an arm without training."""
    offsets: tuple[float, ...] | None
    """Offsets on the logits of the foreground classes, for a tuned threshold."""
    slot: int | None
    """Slot of the proposal that the arm takes for every case; such an arm has no weights."""
    proposal: str | None = None
    """Sampler and setting of that proposal."""
    labelled: int | None = None
    """Cases with labels that the weights follow from, where these are more than the labelled split."""
    stopped: str | None = None
    """Reason for which training ended before its last step."""
    interpolated: float | None = None
    """Share of the student in weights that were interpolated with the base."""
    pairs_mined: int | None = None
    """Pairs that the student was trained on."""
    images: int | None = None
    """Pool images that the student was trained on."""
    beta_own: float | None = None
    """Beta as applied to delta / N(D) without matching."""
    mean_disagreement: float | None = None
    """Mean |D| of the pairs, in voxels."""
    aimed_shift: float | None = None
    """Mean logit shift on D at which the link is satisfied; null where no such shift exists."""
    base_margin_on_disagreement: float | None = None
    """Median difference of the base's two largest logits on D."""
    flipped_share: float | None = None
    """Share of D on which the student predicts another class than the base."""

    @classmethod
    def of(cls, folder: Path) -> StudentRecord | None:
        """The record in a model folder, or None for a model that is no student; raises `BadInput` for other content."""
        path = folder / STUDENT_FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_text())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise BadInput(
                f"{path}: expected the record of a student, found at {where}: {first['msg']}; train the student again "
                "with `dvc repro`"
            ) from error

    @property
    def content(self) -> dict[str, Any]:
        """The record as it stands in the file."""
        return self.model_dump(mode="json", exclude_unset=True)

    def save(self, folder: Path) -> None:
        """Write `student.json`."""
        write_json(folder / STUDENT_FILE, self.content)
