"""Validation Dice of one training by step, and the step that was kept as the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.tables import read_foreign_table


@dataclass(frozen=True)
class ValidationCurve:
    """Validation Dice by step of one training, from the start (step 0) to the last evaluation."""

    dice: Mapping[int, float]
    best: int
    """Step of the weights `best`."""

    @classmethod
    def of_base(cls, history: Path) -> ValidationCurve | None:
        """Curve from `history/base.csv`. None for a base that was not trained. Raises `BadInput` for a missing file."""
        rows = [row for row in read_foreign_table(history).iter_rows(named=True) if row["model"] == "base"]
        return cls._trained(rows, next((int(row["step"]) for row in rows if row["best"] == "true"), 0))

    @classmethod
    def of_student(cls, history: Path, best: int) -> ValidationCurve | None:
        """Curve from `history/NAME.csv`. None for a student that was not trained. Raises `BadInput` as `of_base`."""
        return cls._trained(read_foreign_table(history).rows(named=True), best)

    @classmethod
    def _trained(cls, rows: Sequence[Mapping[str, str]], best: int) -> ValidationCurve | None:
        """Curve of the rows. None if the start is their only step."""
        dice = {int(row["step"]): float(row["validation_dice"]) for row in rows}
        return cls(dice, best) if any(step > 0 for step in dice) else None

    @property
    def last(self) -> int:
        """Step of the last evaluation."""
        return max(self.dice)

    @property
    def text(self) -> str:
        return best_step_text(self.best, self.last)


def best_step_text(best: int, last: int) -> str:
    """Best step of how many in words, and whether the first or the last evaluation was the best."""
    found = f"best on validation at step {best} of {last}"
    if best == last:
        return f"{found}, its last evaluation, so more steps may be better"
    return found if best else f"{found}, before any training"
