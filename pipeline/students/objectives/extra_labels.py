"""Arms that train the base further with the labels of another split, on a schedule of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.seeding import seed_of
from pipeline.segmenter.knobs import Optimisation
from pipeline.students.objectives.objective import Feed, ObjectiveKnobs

if TYPE_CHECKING:
    from pipeline.store.cases import Case
    from pipeline.students.start import Arm, Start


class ExtraLabels(ObjectiveKnobs):
    """DiceCE on the labelled cases and on the cases of `split`, from the base. Every case must have a label."""

    feeds: ClassVar[Feed] = "truth"
    split: ClassVar[str]
    optimisation: Optimisation
    """Steps and step sizes of this arm alone, because more labels need more steps."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Cases per step."""

    @property
    def learns_from(self) -> tuple[str, ...]:
        return "labelled", self.split

    def train(self, start: Start) -> Arm:
        import torch

        from pipeline.segmenter.supervised import Recipe, train_supervised
        from pipeline.students.start import Arm

        cases = start.data.cases
        labelled = [*cases.split("labelled"), *self._with_labels(start)]
        # The dropout layers of the network draw from torch's global generator.
        seed = seed_of(start.seed, start.student.objective.kind)
        torch.manual_seed(seed)
        # Pool images are varied as strongly as in every other arm.
        strong = start.training.views if self.split == "pool" or start.labelled_views else None
        recipe = Recipe(
            start.base.architecture, self.optimisation, self.batch, start.augmentation, start.compute, strong
        )
        trained = train_supervised(recipe, cases, labelled, seed, start=start.base.weights)
        return Arm(trained, {"labelled": len(labelled)})

    def _with_labels(self, start: Start) -> list[Case]:
        """Cases of the split. Raises `BadInput` if a case has no label."""
        cases = start.data.cases
        further = cases.split(self.split)
        if without := [case.case_id for case in further if not case.has_label]:
            raise BadInput(
                f"{cases.folder}: objective '{start.student.objective.kind}' needs the truth of split {self.split}; "
                f"{len(without)} of {len(further)} cases have no label (first: '{without[0]}'); remove the student "
                "from params.yaml"
            )
        return further
