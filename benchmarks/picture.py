"""Draw `docs/images/preference.png` from the finished default run.

`python -m benchmarks.picture --case phantom_0057`
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import polars as pl

from pipeline.compute import Compute
from pipeline.segmenter.models import Model
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore

CHOSEN, REJECTED, STUDENT = "#2ca02c", "#d62728", "#1f77b4"


@click.command(help=__doc__)
@click.option("--case", "case_id", required=True, help="A case of the pair set.")
@click.option("--pairs", default="agreement", show_default=True)
@click.option("--student", default="rn_dpo", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="docs/images/preference.png", show_default=True)
def main(case_id: str, pairs: str, student: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    cases, proposals = CaseStore(Path("data/cases")), ProposalStore(Path("data/proposals"))
    table = pl.read_parquet(f"data/pairs/{pairs}.parquet").filter(case_id=case_id)
    pair = table.sort("margin", descending=True).row(0, named=True)
    case = next(one for one in cases.all if one.case_id == case_id)
    image = cases.image(case)[0]
    chosen, rejected = proposals.masks(case, [pair["chosen"], pair["rejected"]])
    predicted = Model(Path("models/students") / student, "last").segmenter(Compute()).labels(cases.image(case))
    sheet, axes = plt.subplots(1, 5, figsize=(10, 2.3))
    panels: tuple[tuple[str, list[tuple[np.ndarray, str]]], ...] = (
        ("image", []),
        ("proposal, chosen", [(chosen, CHOSEN)]),
        ("proposal, rejected", [(rejected, REJECTED)]),
        ("disagreement region", [(chosen, CHOSEN), (rejected, REJECTED)]),
        ("student", [(predicted, STUDENT)]),
    )
    for axis, (title, masks) in zip(axes, panels, strict=True):
        axis.imshow(image, cmap="gray", interpolation="nearest")
        for mask, colour in masks:
            for label in range(1, len(cases.class_names)):
                axis.contour(mask == label, levels=[0.5], colors=colour, linewidths=1.2)
        if title == "disagreement region":
            region = np.ma.masked_equal((chosen != rejected).astype(float), 0)
            axis.imshow(region, cmap="autumn_r", vmin=0, vmax=1.5, alpha=0.75, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    sheet.subplots_adjust(left=0.005, right=0.995, top=0.88, bottom=0.01, wspace=0.04)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(out, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
