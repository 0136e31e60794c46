"""Which students may be promoted: those that learned from no labels but those of the labelled split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.judges.consensus import Weighted, reads_truth
from pipeline.students.objectives.objective import PoolObjective

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
        name: of_training(student, optimisation) or of_pairs(student, pairs[student.pairs], judges, consensus)
        for name, student in students.items()
    }


def of_training(student: Student, optimisation: Optimisation) -> str | None:
    """Why the training of a student makes it no candidate, in words; None for a candidate."""
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
    return None


def of_pairs(
    student: Student, pairs: PairSet, judges: Mapping[str, JudgeKnobs], consensus: Mapping[str, JudgeConsensus]
) -> str | None:
    """Why the pairs of a student make it no candidate, in words; None for a candidate."""
    if pairs.judge == "none":
        return None
    if pairs.split != "labelled" and reads_truth(pairs.judge, judges, consensus):
        return f"judge '{pairs.judge}' of its pair set reads the truth of split {pairs.split}"
    if isinstance(consensus.get(pairs.judge), Weighted):
        return f"consensus '{pairs.judge}' of its pair set weighs judges by the labels of split validation"
    if pairs.drops_by_p_correct:
        return (
            "its pair set drops pairs by p_correct, which is fitted to the labels of split validation "
            "(min_p_correct: 0 keeps all pairs)"
        )
    if isinstance(student.objective, PoolObjective) and student.objective.needs_p_correct:
        return "its error rates are 1 - p_correct (e: calibrated), which is fitted to the labels of split validation"
    return None
