"""Record of a promotion, `promotion.json`: the decision, its reason, and the gains of all students on validation."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.promotion.knobs import Promotion
from pipeline.store.manifest import read_record, write_json

PROMOTION_FILE = "promotion.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Comparison(_Frozen):
    """A student against a base on the validation patients. Dice is from 0 to 1, higher is better."""

    gain: float
    """Mean over patients of the Dice of the student minus that of the base."""
    lower_bound: float | None
    """Lower bound of the gain, corrected for all candidates. Null for a student that is no candidate, and with too few
    patients."""
    share_worse: float
    """Share of the patients whose Dice is more than `worse_by` below that of the base."""


class Considered(_Frozen):
    """A student, and why it was or was not promoted."""

    name: str
    candidate: bool
    reason: str
    """Why the student was promoted, why it was not, or why it is no candidate."""
    over_base: Comparison
    over_first_base: Comparison | None = None
    """Null in the first round, whose base is the first base."""


class PromotionRecord(_Frozen):
    """The decision and everything that it followed from."""

    promoted: str | None
    """Name of the student that may replace the base; null if no student may."""
    reason: str
    limits: str
    """What the lower bounds are not corrected for."""
    patients: int
    """Number of validation patients."""
    knobs: Promotion
    worse_by: float
    students: tuple[Considered, ...]

    def student(self, name: str) -> Considered:
        """The student of this name, which must be in the run."""
        return next(one for one in self.students if one.name == name)

    @classmethod
    def of(cls, folder: Path) -> PromotionRecord | None:
        """Record in the folder of a promotion. None without a record. Raises `BadInput` for other content."""
        return read_record(cls, folder / PROMOTION_FILE, "the record of a promotion", "run `dvc repro promote` again")

    def save(self, folder: Path) -> None:
        """Write `promotion.json`."""
        write_json(folder / PROMOTION_FILE, self.model_dump(mode="json"))
