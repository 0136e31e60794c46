"""Sampler `regions`: a mask composed region by region from the proposals of earlier samplers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.regions import Options, Regions, composed
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Passes, Setup, drawn
from pipeline.store.proposals import proposal_name

COMPOSED = "composed"
"""The only setting."""


class RegionsSampler(Knobs):
    """One mask per case, composed for a high expected Dice of regions on which earlier proposals vote alike.

    `propose` fits a logistic regression on labelled cases that the models have not seen, which needs `base.folds`. The
    regression estimates how much of a region is of a class. The mask takes the regions with the highest expected Dice.
    Where composing does not gain at least one standard error of Dice over the proposal `fixed` on labelled patients
    that the regression has not seen, below 8 labelled patients, and for cases so large that they are drawn in bands,
    the mask is that of `fixed` in every case.
    """

    kind: Literal["regions"]
    fixed: str = "mean fitted"
    """Sampler and setting of an earlier proposal, such as `mean fitted` or `base`. Composing must be better than this
    proposal. Features of a region are measured against its outline."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        return [COMPOSED]

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        # All earlier proposals vote, and the mean probability is of predictions that are among them.
        known = [passes for passes in before if passes is not None]
        return [frozenset().union(*known) if len(known) == len(before) else None]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        import torch

        from pipeline.segmenter.offsets import mask_at

        names = [proposal_name(draw.sampler, draw.setting) for draw in case.draws]
        at = self.fixed_at(name, names)
        model = case.regions.get(name)
        if model is None:
            source = None if case.source_masks is None else case.source_masks[at]
            yield Draw(case.draws[at].mask.copy(), name, COMPOSED, source_mask=source)
            return
        regions, options = self.seen(name, case, model.voters)
        found = composed(options, model.share(options.values), model.outside)
        share = torch.from_numpy(found.field(regions))
        yield drawn(name, COMPOSED, share, False, partial(mask_at, thresholds=found.thresholds))

    def seen(self, name: str, case: CaseModels, voters: Sequence[str]) -> tuple[Regions, Options]:
        """Regions and options of the draws so far. `voters` are the draws that vote, by sampler and setting."""
        names = [proposal_name(draw.sampler, draw.setting) for draw in case.draws]
        fixed = case.draws[self.fixed_at(name, names)].mask
        regions = Regions.of(np.stack([case.draws[names.index(voter)].mask for voter in voters]))
        # Nothing is composed where cases are drawn in bands, so the image of the case is in memory.
        assert isinstance(case.image, np.ndarray)
        return regions, regions.options(case.mean_probability().numpy(), case.image, fixed)

    def fixed_at(self, name: str, names: Sequence[str]) -> int:
        """Position of the proposal `fixed`. Raises `BadInput` if no earlier proposal has its name."""
        if self.fixed not in names:
            raise BadInput(
                f"propose.samplers.{name}.fixed: expected a proposal before this sampler, one of {list(names)}, found "
                f"'{self.fixed}'; list the sampler after the one that it needs"
            )
        return list(names).index(self.fixed)
