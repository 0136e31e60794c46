"""Section with pictures of validation cases: truth, base, and the top pick of every judge with its stored error map."""

from __future__ import annotations

from textwrap import fill
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.cases.on_page import case_on_page
from pipeline.judges.error_maps import error_maps
from pipeline.measures.numbers import points
from pipeline.measures.overlap import region
from pipeline.report.blocks import Block, Figure, Legend, Note, Section
from pipeline.report.figures import embed, grid
from pipeline.report.pictures import colour_of, height_of, outline, plane_of, show
from pipeline.report.run import Run
from pipeline.store import schema
from pipeline.store.cases import Case

WIDTH = 2.6
"""Width of a picture in inches."""
TIED = " (tied)"


class Pick(NamedTuple):
    """A proposal that at least one judge ranks first, or the base."""

    slot: int
    source: str  # sampler and setting
    dice: float  # true Dice
    judges: tuple[str, ...]
    tied: frozenset[str] = frozenset()
    """Judges that give several proposals the highest score. The first of these proposals is shown."""


def picks(run: Run) -> Section:
    """Pictures of up to four validation cases with the top picks of all judges."""
    blocks: list[Block] = []
    names = sorted(run.params.judge_names, key=run.reads_truth)
    rows = run.panel.filter((pl.col("split") == "validation") & pl.col("true_dice").is_not_null())
    panel = rows.collect().sort("case", "proposal")
    stored, missing = mapping(run)
    if not names:
        blocks.append(Note(["params.yaml has no judges and no score tables."]))
    elif panel.is_empty():
        blocks.append(Note(["No validation case has both a label and proposals, so there is no pick to show."]))
    else:
        cases = {case.case: case for case in run.cases.split("validation")}
        colours = [(name, colour_of(label)) for label, name in enumerate(run.cases.class_names) if label]
        blocks.append(Legend(colours))
        if missing:
            blocks.append(
                Note([f"Judge '{name}' stored no error maps: set its knob maps to validation." for name in missing])
            )
        practical = [name for name in names if not run.reads_truth(name)]
        for why, of_case in shown(panel, practical).items():
            blocks.append(_picture(run, why, cases[of_case["case"][0]], top_picks(of_case, names), stored))
    how = (
        "Top picks of the judges on validation cases whose truth is known. Judges with the same top pick share a "
        "picture. An error map is a judge's probability, voxel by voxel, that its own top pick is wrong: black is 0, "
        "pale yellow is 1."
    )
    return Section("picks", "Top picks of the judges", how, blocks)


def mapping(run: Run) -> tuple[list[str], list[str]]:
    """Names of the judges that stored error maps, and of the judges of kind `error_map` that stored none."""
    judges = run.params.judges
    stored = [name for name in judges if (run.judge_models / name / f"{schema.ERROR.name}.zarr").is_dir()]
    return stored, [name for name, knobs in judges.items() if knobs.kind == "error_map" and name not in stored]


def shown(panel: pl.DataFrame, practical: list[str]) -> dict[str, pl.DataFrame]:
    """Rows of the cases to show, by reason.

    `panel` holds labelled validation cases in the order of case and proposal. The reasons are the largest and the
    median headroom, the largest loss against the base by a top pick of a practical judge, and the lowest Dice of the
    base. No case is shown twice. Without a loss no case is shown for the loss.
    """
    of_case = {rows["case"][0]: rows for rows in panel.partition_by("case", maintain_order=True)}
    base = {case: rows["true_dice"][0] for case, rows in of_case.items()}
    headroom = sorted(of_case, key=lambda case: of_case[case]["true_dice"].max() - base[case])
    lift = {
        case: min((pick.dice for pick in top_picks(rows, practical) if pick.judges), default=base[case]) - base[case]
        for case, rows in of_case.items()
    }
    worst = min(lift, key=lambda case: lift[case])
    wanted = [
        ("largest headroom", headroom[-1]),
        ("largest loss by a judge's pick", worst if lift[worst] < 0 else None),
        ("lowest Dice of the base", min(base, key=lambda case: base[case])),
        ("median headroom", headroom[len(headroom) // 2]),
    ]
    found: dict[str, pl.DataFrame] = {}
    seen = set()
    for why, case in wanted:
        if case is not None and case not in seen:
            seen.add(case)
            found[why] = of_case[case]
    return found


def top_picks(rows: pl.DataFrame, judges: list[str]) -> list[Pick]:
    """The base and the top picks of all judges among the proposals of a case, in the order of the slots.

    A judge that scored no proposal has no top pick. A duplicate counts as the first proposal with the same mask.
    """
    distinct = rows.filter(pl.col("duplicate_of").is_null())
    chosen: dict[int, list[str]] = {0: []}
    tied = set()
    for judge in judges:
        scored = distinct.filter(pl.col(f"score_{judge}").is_not_null())
        top = scored.filter(pl.col(f"score_{judge}") == pl.col(f"score_{judge}").max())
        if len(top):
            chosen.setdefault(top["proposal"][0], []).append(judge)
        if len(top) > 1:
            tied.add(judge)
    slots = {row["proposal"]: row for row in rows.iter_rows(named=True)}
    return [
        Pick(slot, _source(slots[slot]), slots[slot]["true_dice"], tuple(chosen[slot]), frozenset(tied))
        for slot in sorted(chosen)
    ]


def _source(row: dict) -> str:
    return row["sampler"] if row["sampler"] == row["setting"] else f"{row['sampler']} {row['setting']}"


def _picture(run: Run, why: str, case: Case, found: list[Pick], stored: list[str]) -> Figure:
    truth = run.cases.label(case)[None]
    masks = np.concatenate([truth, run.proposals.masks(case, [pick.slot for pick in found])])
    differ = np.any([region(masks[0], mask) for mask in masks[1:]], axis=0)
    mapped: list[tuple[int, str]] = []
    maps: list[np.ndarray] = []
    unmapped: list[str] = []
    for index, pick in enumerate(found):
        for judge in (name for name in pick.judges if name in stored):
            errors = error_maps(run.judge_models / judge, case)[pick.slot]
            if np.isnan(errors).all():
                unmapped.append(judge)
            else:
                mapped.append((index, judge))
                maps.append(errors)
    kept = np.stack(maps) if maps else None
    view = plane_of(run.cases.image(case), masks, differ, case_on_page(run.cases, case), run.cases.rgb, kept)
    caption = f"{why.capitalize()}: validation case {case.case_id}{view.where}. Dice in points."
    if unmapped:
        caption += f" No error map of this case was stored by {', '.join(unmapped)}."
    classes = len(run.cases.class_names)
    titles = [_title(pick) for pick in found]
    lines = max(title.count("\n") + 1 for title in titles)
    with grid(1 + len(found) + len(mapped), WIDTH, height_of(view, WIDTH) + 0.19 * lines, 4) as (drawn, axes):
        places = iter(axes)
        at = next(places)
        show(at, view, "")
        at.set_title("truth", fontsize=9.5)
        outline(at, view.masks[0], classes)
        for index, title in enumerate(titles):
            at = next(places)
            show(at, view, "")
            at.set_title(title, fontsize=9.5)
            outline(at, view.masks[1 + index], classes)
            for row, (of, judge) in enumerate(mapped):
                if of == index:
                    at = next(places)
                    at.imshow(
                        view.maps[row], cmap="inferno", vmin=0, vmax=1, aspect=view.aspect, interpolation="nearest"
                    )
                    at.set_title(fill(f"error map of {judge}", 34), fontsize=9.5)
                    at.set_axis_off()
                    outline(at, view.masks[1 + index], classes)
        spoken = "; ".join(title.replace("\n", " ") for title in titles)
        return embed(drawn, f"Outlines of the truth and of proposals: {spoken}. {caption}", caption, True)


def _title(pick: Pick) -> str:
    judges = ", ".join(f"{judge}{TIED if judge in pick.tied else ''}" for judge in pick.judges)
    return "\n".join(fill(line, 34) for line in (f"{pick.source}: Dice {points(pick.dice)}", judges) if line)
