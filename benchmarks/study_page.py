"""Tables of `docs/results/study.md` from the test Dice of every case, with 95 % intervals over patients and seeds.

A table of the page stands below the comment with its name, and is written anew. `benchmarks.study collect` makes the
table of cases.

    python -m benchmarks.study_page
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import polars as pl

from benchmarks.study import (
    CASES_FILE,
    JUDGES_FILE,
    PROMOTED_FILE,
    SETS,
    TABLES,
    TRIED,
    TRIED_FILE,
    TUNED,
    best_tries,
    read_cases,
    tries,
)
from pipeline.measures.intervals import Interval, crossed_interval

COLUMNS = ("polyps", "nuclei", "hippocampus")
"""Data sets of the tables, in the order of their columns."""
CONFIRMATION = "polyps_128"
"""Data set with a table of its own, on which nothing was chosen."""
GAINS = {
    "flips": ("mean of flips", "4, 2"),
    "ensemble": ("mean of the ensemble", "3"),
    "mean_of_all": ("mean of all models and flips", "12, 6"),
    "mean_fitted": ("the same at its fitted threshold", "12, 6"),
    "base_fitted": ("the base at its fitted threshold", "1"),
    "regions": ("composed of regions", "15, 9"),
    "supervised": ("labels only (`supervised`)", "1"),
    "supervised_pool": ("the same at a threshold from pool images", "1"),
    "supervised_strong": ("labels only with strong labelled views", "1"),
    "validation_labels": ("labels of validation added", "1"),
    "mean_teacher": ("mean teacher", "1"),
    "pseudo_label": ("pseudo-labels", "1"),
    "distill": ("distillation of the mean of all proposals", "1"),
    "imitate_mean": ("imitate the mean at .5", "1"),
    "imitate_fitted": ("imitate the fitted mean", "1"),
    "imitate_best": ("imitate the composed masks", "1"),
    "imitate_best_pool": ("the same at a threshold from pool images", "1"),
    "imitate_best_own": ("the same at a threshold from validation", "1"),
    "recipe": ("shipped recipe: imitate the composed masks, labels weigh three times, threshold from pool images", "1"),
    "recipe_fitted": ("the same with the fitted mean imitated", "1"),
    "recipe_unvaried": ("the same with flipped pool images, without strong views", "1"),
    "imitate_best_twice": ("imitate the composed masks, twice as many steps", "1"),
    "round_2_mean": ("second round: mean of three such students", "12"),
    "round_2": ("second round: imitate this mean", "1"),
    "judge_imitate_alone": ("imitate the top picks of `pairwise`", "1"),
    "judge_rn_dpo_best": ("imitate the composed masks, with RN-DPO on pairs of `pairwise`", "1"),
    "oracle_imitate_alone": ("research: imitate the oracle's picks", "1"),
    "oracle_rn_dpo_alone": ("research: RN-DPO on the oracle's pairs", "1"),
    "oracle_rn_dpo_best": ("research: the same, and imitate the composed masks", "1"),
    "full_same": ("research: all labels of the pool, same steps", "1"),
    "full": ("research: all labels of the pool, four times the steps (hippocampus: three)", "1"),
}
"""Title and forward passes, 2D and 3D, by arm of the table of gains."""
RECOVERED = {
    "supervised": "labels only",
    "supervised_pool": "the same at a threshold from pool images",
    "imitate_best": "imitate the composed masks",
    "imitate_best_pool": "the same at a threshold from pool images",
    "imitate_best_own": "the same at a threshold from validation",
    "recipe": "shipped recipe",
    "recipe_fitted": "the same with the fitted mean imitated",
    "round_2": "second round, twice the steps in all",
    "judge_imitate_alone": "imitate the top picks of `pairwise`",
    "oracle_imitate_alone": "research: imitate the oracle's picks",
}
"""Title by arm of the table of the gap recovered."""
CEILINGS = ("full_same", "full")
"""Arms with all labels of the pool: in the steps of the students, and in more."""
JUDGES = {"oracle": "oracle", "judge": "`pairwise`", "fixed": "`fixed`"}
POOLS = {"alone": "none", "agreement": "imitate where all agree", "best": "imitate the composed masks"}
NAMES = {"imitate": "imitate", "rn_dpo": "RN-DPO", "rn_cdpo": "RN-cDPO", "dpo": "DPO"}
PROMOTED = {
    "supervised": "labels only",
    "recipe": "shipped recipe",
    "judge_rn_dpo_best": "imitation with RN-DPO of `pairwise`",
}
"""Title by candidate of the table of promotions."""
LIFTS = {
    "fixed": "`mean fitted`",
    "fixed_best": "`fixed`, best on labelled cases",
    "agreement": "`agreement`",
    "pairwise": "`pairwise`",
    "quality": "`quality`",
    "learned": "`pairwise` and `quality`",
    "oracle": "oracle",
}
"""Title by judge of the table of lifts."""
BESIDE = "beside the imitation of the composed masks"
AGREED = "beside imitation where all agree"
OF_PICKS = {
    "RN-DPO against imitation of the same picks": ("{}_rn_dpo_alone", "{}_imitate_alone"),
    f"RN-DPO against imitation of the same picks, both {BESIDE}": ("{}_rn_dpo_best", "{}_imitate_best"),
    f"RN-DPO {BESIDE} against this imitation alone": ("{}_rn_dpo_best", "imitate_best"),
    "RN-DPO against DPO": ("{}_rn_dpo_alone", "{}_dpo_alone"),
    f"RN-DPO against DPO, both {BESIDE}": ("{}_rn_dpo_best", "{}_dpo_best"),
    "RN-cDPO against RN-DPO": ("{}_rn_cdpo_alone", "{}_rn_dpo_alone"),
    f"RN-cDPO against RN-DPO, both {BESIDE}": ("{}_rn_cdpo_best", "{}_rn_dpo_best"),
    f"RN-DPO {BESIDE} against RN-DPO {AGREED}": ("{}_rn_dpo_best", "{}_rn_dpo_agreement"),
    f"RN-DPO {AGREED} against RN-DPO alone": ("{}_rn_dpo_agreement", "{}_rn_dpo_alone"),
    f"imitation of the picks {AGREED} against imitation of the picks alone": (
        "{}_imitate_agreement",
        "{}_imitate_alone",
    ),
    f"RN-DPO against imitation of the same picks, both {AGREED}": ("{}_rn_dpo_agreement", "{}_imitate_agreement"),
    f"RN-DPO against DPO, both {AGREED}": ("{}_rn_dpo_agreement", "{}_dpo_agreement"),
    f"RN-cDPO against RN-DPO, both {AGREED}": ("{}_rn_cdpo_agreement", "{}_rn_dpo_agreement"),
}
"""Arm and rival by title, for the picks of every judge."""
CONFIRMED = {
    "mean_fitted": ("mean of all models and flips at its fitted threshold", "12"),
    "regions": ("composed of regions", "15"),
    "supervised": ("labels only (`supervised`)", "1"),
    "supervised_pool": ("labels only at a threshold from pool images", "1"),
    "imitate_best": ("imitate the composed masks", "1"),
    "recipe": ("shipped recipe", "1"),
    "full_same": ("research: all labels of the pool, same steps", "1"),
}
"""Title and forward passes by arm of the table of polyps at 128x128."""
DIFFERENCES = {
    "imitation of the composed masks against labels only": ("imitate_best", "supervised"),
    "imitation of the composed masks against distillation": ("imitate_best", "distill"),
    "imitation of the composed masks against all passes of the fitted mean": ("imitate_best", "mean_fitted"),
    "imitation of the composed masks against all passes of these masks": ("imitate_best", "regions"),
    "imitation against labels only, both at a threshold from pool images": ("imitate_best_pool", "supervised_pool"),
    "shipped recipe against labels only": ("recipe", "supervised"),
    "shipped recipe against labels only at a threshold from pool images": ("recipe", "supervised_pool"),
    "shipped recipe against the same at equal weights and threshold .5": ("recipe", "imitate_best"),
    "shipped recipe against all passes of the fitted mean": ("recipe", "mean_fitted"),
    "the same with the fitted mean imitated": ("recipe_fitted", "mean_fitted"),
    "shipped recipe against distillation": ("recipe", "distill"),
    "shipped recipe against mean teacher": ("recipe", "mean_teacher"),
    "shipped recipe against pseudo-labels": ("recipe", "pseudo_label"),
    "shipped recipe: the composed masks imitated against the fitted mean imitated": ("recipe", "recipe_fitted"),
    "shipped recipe: strong views of pool images against flipped ones": ("recipe", "recipe_unvaried"),
    "imitation: threshold from pool images against .5": ("imitate_best_pool", "imitate_best"),
    "imitation: threshold from validation against .5": ("imitate_best_own", "imitate_best"),
    "labels only: threshold from pool images against .5": ("supervised_pool", "supervised"),
    "labels only: labels of validation added against not": ("validation_labels", "supervised"),
    "imitation: top picks of `pairwise` against the composed masks": ("judge_imitate_alone", "imitate_best"),
    "research: imitation of the oracle's picks against the shipped recipe": ("oracle_imitate_alone", "recipe"),
    "shipped recipe against all labels of the pool, same steps": ("recipe", "full_same"),
    "second round against the first": ("round_2", "imitate_best"),
    "second round against one round of as many steps": ("round_2", "imitate_best_twice"),
    "second round against the shipped recipe": ("round_2", "recipe"),
}
"""Arm and rival by title of the table of differences."""
TITLES = {
    "supervised": "labels only (at .3: strong labelled views)",
    "full": "research: all labels of the pool, same steps",
    "imitate": "imitate the composed masks",
    "preference": "the same with RN-DPO of `pairwise`",
    "preference_alone": "RN-DPO of `pairwise` alone",
    "oracle_imitate": "research: imitate the oracle's picks",
    "oracle_preference": "research: imitate the composed masks with RN-DPO of the oracle",
    "oracle_preference_alone": "research: RN-DPO of the oracle alone",
    "distill": "distillation of the mean of all proposals",
    "mean_teacher": "mean teacher (its consistency weighs ten times as much)",
    "pseudo_label": "pseudo-labels",
}
"""Title by family of the table of tries."""


class Measured:
    """Test Dice of all arms of one data set over its seeds, from rows of `CASE_COLUMNS`."""

    def __init__(self, cases: pl.DataFrame) -> None:
        self.cases = cases
        self.arms = cases["arm"].unique().sort().to_list()

    def dice(self, arm: str, column: str = "dice") -> tuple[list[int], np.ndarray, list[str]]:
        """Seeds that have the arm, its Dice f64 `[seed, case]` and the patient of every case."""
        of = self.cases.filter(pl.col("arm") == arm).sort("seed", "case_id")
        found = of["seed"].unique().sort().to_list()
        values = of[column].cast(pl.Float64).to_numpy().reshape(len(found), -1) if found else np.zeros((0, 0))
        return found, values, of["group"].to_list()[: values.shape[1]]

    def difference(self, one: str, other: str) -> tuple[int, Interval] | None:
        """Number of seeds that have both arms, and the difference of their Dice. None without a common seed."""
        (seeds, values, groups), (seeds_of_other, others, _) = self.dice(one), self.dice(other)
        both = [seed for seed in seeds if seed in seeds_of_other]
        if not both:
            return None
        first = values[[seeds.index(seed) for seed in both]]
        second = others[[seeds_of_other.index(seed) for seed in both]]
        return len(both), crossed_interval(first - second, groups, 2000, 0)

    def recovered(self, arm: str, ceiling: str) -> tuple[int, Interval] | None:
        """Number of seeds, and gain of an arm over that of full supervision, with the interval of the linearised ratio.

        With gains a and b of every seed and patient and r = mean(a) / mean(b), the interval is that of the mean of
        (a - r b) / mean(b) around r. Without a mean if the gain of full supervision is not shown to be above 0. None
        without a common seed.
        """
        parts = {name: self.dice(name) for name in (arm, "base", ceiling)}
        both = sorted(set.intersection(*(set(seeds) for seeds, _, _ in parts.values())))
        if not both:
            return None
        of = {name: values[[seeds.index(seed) for seed in both]] for name, (seeds, values, _) in parts.items()}
        groups = parts["base"][2]
        gain, full_gain = of[arm] - of["base"], of[ceiling] - of["base"]
        whole, own = (crossed_interval(values, groups, 2000, 0) for values in (full_gain, gain))
        if whole.low is None or whole.low <= 0 or whole.mean is None or own.mean is None:
            return len(both), Interval(None, None, None)
        ratio = own.mean / whole.mean
        around = crossed_interval((gain - ratio * full_gain) / whole.mean, groups, 2000, 0)
        if around.low is None or around.high is None:
            return len(both), Interval(ratio, None, None)
        return len(both), Interval(ratio, ratio + around.low, ratio + around.high)


def cell(found: tuple[int, Interval] | None, most: int, form: Callable[[float], str], unit: str = "") -> str:
    """Mean with interval, and the number of seeds if the number is below `most`; a dash if nothing was measured."""
    if found is None:
        return "-"
    seeds, (mean, low, high) = found
    value = "unknown" if mean is None else form(mean) + unit
    ends = "" if low is None or high is None else f" [{form(low).lstrip('+')}, {form(high).lstrip('+')}]"
    return value + ends + ("" if seeds == most else f" ({seeds} seed{'s' * (seeds > 1)})")


def points(value: float) -> str:
    """A difference of Dice in points, with its sign: 0.012 is +1.2."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


def percent(value: float) -> str:
    """A share in percent, without the sign of percent: 0.49 is 49."""
    return str(round(100 * value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def all_tables(of: Mapping[str, Measured], tried: Path) -> dict[str, str]:
    """All tables of the page by name, from the measured arms by data set and the file of tries."""
    there = [name for name in COLUMNS if of[name].arms]
    most = {name: len(of[name].dice("base")[0]) for name in there}
    heads = [f"{name}, {most[name]} seed{'s' * (most[name] > 1)}" for name in there]

    def compared(one: str, other: str) -> list[str]:
        return [cell(of[name].difference(one, other), most[name], points) for name in there]

    gains = [(title, passes, *compared(arm, "base")) for arm, (title, passes) in GAINS.items()]
    shares = [
        (
            title,
            *(cell(of[name].recovered(arm, full), most[name], percent, " %") for full in CEILINGS for name in there),
        )
        for arm, title in RECOVERED.items()
    ]
    made = {
        "gains": table(["arm", "passes", *heads], gains),
        "recovered": table(["student", *(steps_of(name, full) for full in CEILINGS for name in there)], shares),
        "differences": table(
            ["comparison", *heads], [(title, *compared(*pair)) for title, pair in DIFFERENCES.items()]
        ),
        "preference": table(
            ["picks", "comparison", *heads],
            [
                (judge, title, *compared(one.format(pick), other.format(pick)))
                for title, (one, other) in OF_PICKS.items()
                for pick, judge in JUDGES.items()
            ],
        ),
    }
    for name in there:
        rows = [
            (
                judge,
                pool,
                *(cell(of[name].difference(f"{pick}_{loss}_{end}", "base"), most[name], points) for loss in NAMES),
            )
            for pick, judge in JUDGES.items()
            for end, pool in POOLS.items()
        ]
        made[f"pairs of {name}"] = table(["picks", "term on the pool", *NAMES.values()], rows)
    made["tries"] = tries_table(tried, TITLES, TUNED)
    return made


def confirmed_table(of: Measured) -> str:
    """Arms of a confirmation: gain over the base, the recipe's gain over the arm, and the share of all labels' gain."""
    most = len(of.dice("base")[0])
    rows = [
        (
            title,
            passes,
            cell(of.difference(arm, "base"), most, points),
            "" if arm == "recipe" else cell(of.difference("recipe", arm), most, points),
            "" if arm == "full_same" else cell(of.recovered(arm, "full_same"), most, percent, " %"),
        )
        for arm, (title, passes) in CONFIRMED.items()
    ]
    heads = ["gain over the base", "shipped recipe against the arm", "share of the gain of all labels"]
    return table(["arm", "passes", *heads], rows)


def steps_of(name: str, ceiling: str) -> str:
    """Data set and steps of an arm with all labels, against those of the students: the head of a column."""
    steps = SETS[name]["steps"]
    times = "same steps" if ceiling == "full_same" else f"{steps['full'] // steps['student']} times the steps"
    return f"{name}, {times}"


def lifts_table(judges: pl.DataFrame) -> str:
    """Lift of the judges over the best fixed sampler on validation, a row per data set and seed."""

    def measured(row: Mapping[str, float], name: str) -> str:
        return cell((1, Interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high")))), 1, points)

    rows = []
    for name in COLUMNS:
        for _, of in judges.filter(pl.col("set") == name).group_by("seed", maintain_order=True):
            by_judge = {row["judge"]: row for row in of.iter_rows(named=True)}
            first = of.row(0, named=True)
            lifts = [measured(by_judge[judge], "lift_over_fixed") for judge in LIFTS]
            # The lift over the base minus the lift over the sampler is what the sampler gains over the base.
            sampler = points(first["lift"] - first["lift_over_fixed"])
            rows.append([f"{name}, {first['seed']}", f"`{first['fixed_sampler']}`, {sampler}", *lifts])
    return table(["set, seed", "best fixed sampler, over the base", *LIFTS.values()], rows)


def promoted_table(promotions: pl.DataFrame, of: Mapping[str, Measured]) -> str:
    """What each seed promoted: its gain on validation, and on test over the base and over the fitted mean."""
    rows = []
    for name in COLUMNS:
        for _, found in promotions.filter(pl.col("set") == name).group_by("seed", maintain_order=True):
            seed = found["seed"][0]
            chosen = found.filter("promoted")
            first = [f"{name}, {seed}", str(found["patients"][0])]
            if not chosen.height:
                rows.append([*first, "none", *["-"] * 5])
                continue
            (one,) = chosen.iter_rows(named=True)
            here = Measured(of[name].cases.filter(pl.col("seed") == seed))
            over = [cell(here.difference(one["arm"], other), 1, points) for other in ("base", "mean_fitted")]
            worse = f"{percent(one['share_worse'])} %"
            title = PROMOTED.get(one["arm"], one["arm"])
            # Two decimals, so that a bound just above 0 does not look like 0.
            bound = f"{100 * one['lower_bound']:+.2f}"
            rows.append([*first, title, points(one["gain"]), bound, worse, *over])
    heads = ["validation gain", "lower bound", "patients worse", "test gain", "test, against the fitted mean"]
    return table(["set, seed", "patients", "promoted", *heads], rows)


def tries_table(file: Path, titles: Mapping[str, str], sets: Sequence[str]) -> str:
    """Gains on validation of the data sets, by family, learning rate and weight, with the choice in bold."""
    found = pl.read_csv(file)
    best = best_tries(file, sets)
    gain = {row[:3]: row[3:] for row in found.select("family", "rate", "weight", *sets).iter_rows()}

    def of_try(name: str, one: tuple[float, float]) -> str:
        text = " / ".join(points(value) for value in gain[name, *one])
        return f"**{text}**" if one == best[name] else text

    rows = [
        (title, *(of_try(name, one) if one in tries(name) else "" for one in TRIED))
        for name, title in titles.items()
        if name in best
    ]
    heads = [f"{rate:.0e}, {weight:g}".replace("e-0", "e-") for rate, weight in TRIED]
    return table(["family", *heads], rows)


def put(page: str, name: str, content: str) -> str:
    """The page with this table below the comment of its name. A page without the comment stays as it is."""
    below = re.compile(rf"(<!-- table: {re.escape(name)} -->\n)(?:\|.*\n)*")
    return below.sub(lambda found: f"{found[1]}{content}\n", page)


@click.command(help=__doc__)
@TABLES
def main(tables: Path) -> None:
    cases = read_cases(tables / CASES_FILE)
    measured = {name: Measured(cases.filter(pl.col("set") == name)) for name in cases["set"].unique()}
    none = Measured(cases.clear())
    of = {name: measured.get(name, none) for name in COLUMNS}
    made = all_tables(of, tables / TRIED_FILE)
    made["confirmed"] = confirmed_table(measured.get(CONFIRMATION, none))
    made["lifts"] = lifts_table(pl.read_csv(tables / JUDGES_FILE))
    made["promoted"] = promoted_table(pl.read_csv(tables / PROMOTED_FILE), of)
    page = tables / "study.md"
    text = page.read_text()
    for name, content in made.items():
        place = "" if f"<!-- table: {name} -->" in text else f", which {page} has no comment for"
        print(f"\n{name}{place}\n\n{content}")
        text = put(text, name, content)
    page.write_text(text)


if __name__ == "__main__":
    main()
