"""Contract of the judge family: one score per proposal of a case; higher is better, NaN means abstained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.knobs import NOTHING, Knobs
from pipeline.measures.overlap import first_equal
from pipeline.store.cases import Case, CaseStore, is_known
from pipeline.store.proposals import ProposalStore


@dataclass(frozen=True)
class Evidence:
    """Inputs of a judge for one case; each part is read from disk at its first use."""

    cases: CaseStore
    proposals: ProposalStore
    case: Case
    research: bool = False
    """Whether the judge may read the truth."""

    @cached_property
    def image(self) -> np.ndarray:
        """Image f32 `[channel, *space]` on the working grid."""
        return self.cases.image(self.case)

    @cached_property
    def masks(self) -> np.ndarray:
        """Proposals as label maps u8 `[proposal, *space]`."""
        return self.proposals.masks(self.case)

    @cached_property
    def probability(self) -> np.ndarray:
        """Mean probability f32 `[class, *space]` in steps of 1/255."""
        return self.proposals.probability(self.case)

    @cached_property
    def disagreement(self) -> np.ndarray:
        """|D|, the number of voxels on which two proposals differ, u32 `[proposal, proposal]`."""
        return self.proposals.disagreement(self.case)

    @cached_property
    def originals(self) -> np.ndarray:
        """First slot with the same mask, i64 `[proposal]`; a mask that is no duplicate has its own slot."""
        return first_equal(self.masks)

    @property
    def samplers(self) -> list[str]:
        """Name of the sampler of each proposal."""
        # Rows are sorted by case, so a binary search replaces a scan of the whole table.
        table = self.proposals.table
        first, last = (table["case_id"].search_sorted(self.case.case_id, side) for side in ("left", "right"))
        return table["sampler"][first:last].to_list()

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.cases.class_names)

    def truth(self) -> np.ndarray | None:
        """Truth u8 `[*space]`; None for a case without label, and where the label is unknown everywhere.

        Raises `BadInput` unless the judge is for research.
        """
        if not self.research:
            raise BadInput(
                f"case '{self.case.case_id}': a judge without `research = True` asked for the truth; expected a score "
                "from image, masks and probability alone"
            )
        label = self.cases.label(self.case) if self.case.has_label else None
        return label if label is not None and is_known(label) else None


@dataclass(frozen=True)
class JudgeInputs:
    """Everything that a judge may learn from before it scores, and the folder for its learned files."""

    cases: CaseStore
    """All cases. Only labels of the labelled split can be read, except by judges for research."""
    proposals: ProposalStore
    """All proposals; those of test cases are not scored."""
    out_of_fold: ProposalStore
    """Proposals of labelled cases by models that were not trained on the case. Empty if the base has no folds."""
    models: Path
    """Folder for learned files. Files that a killed run of the same knobs and inputs finished are still there."""
    compute: Compute
    seed: int
    flips: tuple[int, ...] = ()
    """Spatial axes along which images may be mirrored in training."""
    verdicts: Path = NOTHING
    """Table of the answers of reviewers, for kind `expert`."""

    def learned_from(self, kind: str) -> list[Case]:
        """Labelled cases that have out-of-fold proposals and a label that is known somewhere.

        Raises `BadInput` if there are none.
        """
        known = set(self.out_of_fold.case_ids())
        found = [case for case in self.cases.known("labelled") if case.case_id in known]
        if not found:
            raise BadInput(
                f"{self.out_of_fold.folder}: a judge of kind '{kind}' learns from out-of-fold proposals of "
                "labelled cases, found none; expected base.folds of at least 2 and a base of kind 'trained', or an "
                "nnU-Net with splits_final.json and labelled cases that a fold held out; set base.folds, or remove "
                "the judge"
            )
        return found


class Scorer(Protocol):
    """A judge that is ready to score. Scorers are picklable."""

    def score(self, evidence: Evidence) -> np.ndarray:
        """One score per proposal, f64 `[proposal]`, finite; NaN where the judge abstains."""
        ...


class Judge(Protocol):
    """A kind of judge: frozen knobs (`JudgeKnobs`) with a literal `kind`."""

    research: ClassVar[bool]

    def inputs(self) -> list[Path]:
        """Files that the scores depend on, besides cases and proposals."""
        ...

    @property
    def kind(self) -> str:
        """Name of the kind in `params.yaml`."""
        ...

    def ready(self, given: JudgeInputs) -> Scorer:
        """Check the inputs and learn, if the kind does; the result scores. Raises `BadInput`."""
        ...


class JudgeKnobs(Knobs):
    """Base of all judges. By default a judge learns nothing, and the knobs themselves are the scorer."""

    research: ClassVar[bool] = False
    """Whether the judge reads the truth of the cases that it scores. Every result that uses its scores is then for
    research only."""

    @property
    def learns(self) -> bool:
        """Whether the judge learns from out-of-fold proposals of labelled cases, which need a base with folds."""
        return False

    def inputs(self) -> list[Path]:
        """Files that the scores depend on, besides cases and proposals."""
        return []

    def ready(self, given: JudgeInputs) -> Any:
        return self
