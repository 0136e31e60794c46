"""One preference pair as a picture, for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cases.on_page import case_on_page
from pipeline.errors import BadInput
from pipeline.measures.overlap import region
from pipeline.pairs.masks import pair_masks
from pipeline.report.figures import drawing
from pipeline.report.pictures import draw_legend, draw_pair, height_of, plane_of
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 2.6
"""Width of each of the four pictures in inches."""


def show(pair: Mapping[str, Any], project: Path | str = ".") -> Figure:
    """Image, chosen mask, rejected mask and disagreement region D of a pair. Notebooks show the returned figure.

    `pair` is a row of `data/pairs/NAME.parquet` as a dictionary, such as `pairs.row(0, named=True)`. `project` is the
    folder of `params.yaml`. The title says case, judge, margin and P(the order is right). Masks are drawn as outlines,
    on the working grid. A volume is shown by one slice, across the axis of largest spacing, with the most voxels of D.
    Raises `BadInput` for another kind of row, for a folder without a finished run, and for a pair of another run.
    """
    _check(pair)
    data = Path(project) / "data"
    if not (data / "cases").is_dir():
        raise BadInput(
            f"{Path(project).resolve()}: expected the folder of a finished run, found no folder data/cases; give the "
            "folder of params.yaml: show(pair, project)"
        )
    cases, proposals = CaseStore(data / "cases"), ProposalStore(data / "proposals")
    case = cases.case(pair["case_id"])
    masks = pair_masks(pair, case, proposals)
    view = plane_of(cases.image(case), masks, region(*masks), case_on_page(cases, case), cases.rgb)
    believed = "unknown" if pair["p_correct"] is None else f"{pair['p_correct']:.2f}"
    with drawing(4 * WIDTH, height_of(view, WIDTH) + 1.1) as drawn:
        draw_pair(drawn, view, (pair["chosen_sampler"], pair["rejected_sampler"]), len(cases.class_names))
        draw_legend(drawn, cases.class_names)
        drawn.suptitle(
            f"case {case.case_id}{view.where}\njudge {pair['judge']}, margin {pair['margin']:.3g}, P(order right) "
            f"{believed}, |D| {pair['disagreement']} voxels",
            fontsize=11,
        )
        return drawn


def _check(pair: Any) -> None:
    """Refuse anything but a row of schema `PAIRS` with the names of its columns."""
    advice = "take a row as `pairs.row(0, named=True)`"
    if not isinstance(pair, Mapping):
        raise BadInput(f"expected a pair as a dictionary of columns, found {type(pair).__name__}; {advice}")
    if missing := [name for name in schema.PAIRS.columns if name not in pair]:
        raise BadInput(
            f"expected a row of data/pairs/NAME.parquet, found a dictionary without {', '.join(missing)}; {advice}"
        )
