"""Which students may be promoted: those that learned from no labels but those of the labelled split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.judges.consensus import reads_truth

if TYPE_CHECKING:
    from pipeline.judges.consensus import JudgeConsensus
    from pipeline.judges.judge import JudgeKnobs
    from pipeline.pairs.mine import PairSet
    from pipeline.segmenter.knobs import Optimisation
    from pipeline.students.student import Student


def objections(
    students: Mapping[str, Student],
    pairs: Mapping[str, PairSet],
    judges: Mapping[str, JudgeKnobs],
    consensus: Mapping[str, JudgeConsensus],
    optimisation: Optimisation,
) -> dict[str, str | None]:
    """Why each student is no candidate, in words; None for a candidate. `optimisation` is that of all students."""
    return {
        name: objection(
            student, pairs[student.pairs], reads_truth(pairs[student.pairs].judge, judges, consensus), optimisation
        )
        for name, student in students.items()
    }


def objection(student: Student, pairs: PairSet, truth: bool, optimisation: Optimisation) -> str | None:
    """Why a student is no candidate, in words; None for a candidate.

    `truth` says whether the judge of the pair set reads the truth of the cases that it scores.
    """
    objective = student.objective
    if not objective.has_weights:
        return f"objective '{objective.kind}' takes a proposal of every case, so the student has no weights"
    if further := [split for split in objective.labels_from if split != "labelled"]:
        return f"objective '{objective.kind}' uses the labels of split {' and '.join(further)}"
    if student.interpolate is not None:
        return "its share in the interpolation with the base was chosen by the labels of split validation"
    if optimisation.patience is not None:
        return "its last step was chosen by the labels of split validation (training.optimisation.patience)"
    if student.offsets == "validation":
        return "its offsets were fitted on the labels of split validation"
    if truth and pairs.split != "labelled":
        return f"judge '{pairs.judge}' of its pair set reads the truth of split {pairs.split}"
    return None
