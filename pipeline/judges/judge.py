"""What a judge is: it scores every proposal of a case, higher is better, NaN = it abstains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.measures.overlap import first_equal
from pipeline.store.cases import Case, CaseStore
from pipeline.store.proposals import ProposalStore


@dataclass(frozen=True)
class Evidence:
    """One case as a judge sees it; each part is read when it is first used."""

    cases: CaseStore
    proposals: ProposalStore
    case: Case
    research: bool = False
    """Whether the judge may look at the truth."""

    @cached_property
    def image(self) -> np.ndarray:
        """f32 `[channel, *space]`."""
        return self.cases.image(self.case)

    @cached_property
    def masks(self) -> np.ndarray:
        """u8 `[proposal, *space]`."""
        return self.proposals.masks(self.case)

    @cached_property
    def probability(self) -> np.ndarray:
        """f32 `[class, *space]`, the mean probability, in steps of 1/255."""
        return self.proposals.probability(self.case)

    @cached_property
    def disagreement(self) -> np.ndarray:
        """u32 `[proposal, proposal]`: |D|, voxels on which two proposals differ."""
        return self.proposals.disagreement(self.case)

    @property
    def originals(self) -> np.ndarray:
        """i64 `[proposal]`: the first slot with the same mask; its own slot for all but duplicates."""
        return first_equal(self.masks)

    @property
    def samplers(self) -> list[str]:
        """Name of the sampler of each proposal."""
        table = self.proposals.table  # in the order of its key, so that a case is found without reading all rows
        first, last = (table["case_id"].search_sorted(self.case.case_id, side) for side in ("left", "right"))
        return table["sampler"][first:last].to_list()

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.cases.class_names)

    def truth(self) -> np.ndarray | None:
        """u8 `[*space]`, or None for a case without label; raises `BadInput` for a judge that is not for research."""
        if not self.research:
            raise BadInput(
                f"case '{self.case.case_id}': a judge without `research = True` asked for the truth; expected a score "
                "from image, masks and probability alone"
            )
        return self.cases.label(self.case) if self.case.has_label else None


@dataclass(frozen=True)
class JudgeInputs:
    """What a judge may learn from before it scores."""

    cases: CaseStore
    """Labels of the labelled split alone can be read, but by judges for research."""
    proposals: ProposalStore
    out_of_fold: ProposalStore
    """Proposals of labelled cases by models that have not seen them; empty where the base has no folds."""
    models: Path
    """Folder for what is learned. What a killed run of the same knobs and inputs has finished is still there."""
    compute: Compute
    seed: int
    flips: tuple[int, ...] = ()
    """Spatial axes along which images may be mirrored in training."""

    def learned_from(self, kind: str) -> list[Case]:
        """Labelled cases that have out-of-fold proposals; raises `BadInput` where there is none."""
        known = set(self.out_of_fold.case_ids())
        found = [case for case in self.cases.split("labelled") if case.case_id in known]
        if not found:
            raise BadInput(
                f"{self.out_of_fold.folder}: a judge of kind '{kind}' learns from out-of-fold proposals of "
                "labelled cases, found none; expected base.folds of at least 2, which takes a base that is trained here"
            )
        return found


class Scorer(Protocol):
    """A judge that is ready to score; picklable."""

    def score(self, evidence: Evidence) -> np.ndarray:
        """f64 `[proposal]`; NaN where the judge abstains."""
        ...


class Judge(Protocol):
    """Frozen knobs (`JudgeKnobs`) with a literal `kind`."""

    research: ClassVar[bool]

    def inputs(self) -> list[Path]:
        """Files beyond cases and proposals that scores follow from."""
        ...

    @property
    def kind(self) -> str:
        """Name of the kind in `params.yaml`."""
        ...

    def ready(self, given: JudgeInputs) -> Scorer:
        """Read, check or learn what scoring needs. Raises `BadInput`."""
        ...


class JudgeKnobs(Knobs):
    """Knobs of a judge; one that needs nothing but the case is ready as it is."""

    research: ClassVar[bool] = False
    """Whether it reads the truth of what it scores, so that what follows from it is for research only."""

    def inputs(self) -> list[Path]:
        """Files beyond cases and proposals that scores follow from."""
        return []

    def ready(self, given: JudgeInputs) -> Any:
        return self
