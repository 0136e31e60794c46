"""Section with pictures of mined pairs: image, chosen mask, rejected mask, and disagreement region."""

from __future__ import annotations

import polars as pl

from pipeline.cases.on_page import case_on_page
from pipeline.measures.overlap import region
from pipeline.pairs.masks import pair_masks
from pipeline.report.blocks import Block, Figure, Legend, Note, Section
from pipeline.report.figures import drawing, embed
from pipeline.report.pictures import draw_pair, height_of, legend, plane_of
from pipeline.report.run import Run
from pipeline.store import schema
from pipeline.store.cases import Case


def examples(run: Run) -> Section:
    """Pictures of up to four pairs of every pair set."""
    blocks: list[Block] = []
    rows = {case.case: case for case in run.cases.all}
    for name in run.mined:
        pairs = run.pairs_of(name)
        if pairs.is_empty():
            blocks.append(Note([f"Pair set '{name}' has no pairs."]))
        for why, pair in picked(pairs).items():
            blocks.append(_picture(run, name, why, pair, rows[pair["case"]]))
    if blocks:
        blocks.insert(0, Legend(legend(run.cases.class_names)))
    else:
        blocks.append(Note(["params.yaml has no pair sets."]))
    how = (
        "A pair pushes the student towards the chosen mask inside the disagreement region only. Check whether you "
        "would choose the same mask. Intensities are stretched for display. Pictures are cropped to both masks."
    )
    return Section("examples", "Examples of pairs", how, blocks)


def picked(pairs: pl.DataFrame) -> dict[str, dict]:
    """Rows of the pairs to show, by reason: largest and smallest margin, largest and median |D|.

    No pair is shown twice.
    """
    found: dict[str, dict] = {}
    by_margin = pairs.sort("margin", *schema.PAIRS.key)
    by_size = pairs.sort("disagreement", *schema.PAIRS.key)
    seen: set[tuple] = set()
    for why, ordered, at in (
        ("largest margin", by_margin, -1),
        ("smallest margin", by_margin, 0),
        ("largest |D|", by_size, -1),
        ("median |D|", by_size, len(pairs) // 2),
    ):
        if len(pairs):
            row = ordered.row(at, named=True)
            key = tuple(row[part] for part in schema.PAIRS.key)
            if key not in seen:
                seen.add(key)
                found[why] = row
    return found


def _picture(run: Run, pairs: str, why: str, pair: dict, case: Case) -> Figure:
    masks = pair_masks(pair, case, run.proposals)
    view = plane_of(run.cases.image(case), masks, region(*masks), case_on_page(run.cases, case), run.cases.rgb)
    believed = "" if pair["p_correct"] is None else f"p_correct {pair['p_correct']:.2f}, "
    caption = (
        f"{pairs}, {why}: case {pair['case_id']}{view.where}, margin {pair['margin']:.2g}, {believed}"
        f"|D| {pair['disagreement']} voxels."
    )
    with drawing(9.4, height_of(view, 2.3) + 0.3) as drawn:
        draw_pair(drawn, view, (pair["chosen_sampler"], pair["rejected_sampler"]), len(run.cases.class_names))
        return embed(
            drawn, f"Image, chosen outline, rejected outline and disagreement region. {caption}", caption, True
        )
