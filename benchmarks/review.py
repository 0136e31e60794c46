"""What answers of a simulated reviewer show, and what a student gains by them.

The reviewer prefers the mask of higher true Dice and errs with a known rate, also when the same pair is shown again.

    python -m benchmarks.review intervals --seeds 100 --out docs/results/review.csv
    python -m benchmarks.review mixed --seeds 100 --out docs/results/review_mixed.csv
    python -m benchmarks.review labels --seeds 100 --out docs/results/review_labels.csv
    python -m benchmarks.review students --seed 0 --data ../shared/data --out review_study
    python -m benchmarks.review gains --out review_study --table docs/results/review_students.csv

`intervals`, `mixed` and `labels` run on ellipses with planted errors of the judges, without training, in minutes.
`students` runs one seed on polyps and goes on where it was stopped, so several seeds may run beside each other.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from ruamel.yaml import YAML

from benchmarks.audit_coverage import Population, drawn_and_judged
from benchmarks.stage import stage
from benchmarks.study import RATES, SETS, measured, parameters, trained
from pipeline.audit.answers import Answers, Measured, answers_row, by_judge, by_pairs
from pipeline.measures.intervals import Interval, crossed_interval, share_interval
from pipeline.pairs.mine import PairSet
from pipeline.review.draw import Counts, Draws, doubtful, pairs_of_judge, pairs_of_set, stratified
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from pipeline.store.tables import read_table, write_table

REPEATS = 0.1
"""Share of the answers that are on a pair that was shown before."""
ERRORS = (0.0, 0.05, 0.15)
"""Error rates of the reviewer."""
NUMBERS = (30, 50, 100)
"""Numbers of answers, repeats included."""
POPULATION = 8
"""Validation sets of `audit_coverage` that make the pool together: 400 cases of 200 patients, 6 masks each."""
NOTHING_KNOWN = Interval(None, None, None)

Dice = Mapping[tuple[str, int], float]
"""True Dice by case and slot."""


# ---- a simulated reviewer ------------------------------------------------------------------------------------------


def shown_pairs(draws: Draws, count: int, before: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The first pairs that a review shows, as rows of `VERDICTS` without an answer, after those of an earlier review.

    A target has no pair twice.
    """
    seen = {(row["case_id"], row["slot_a"], row["slot_b"]) for row in before}
    audited: set[tuple[str, int, int]] = set()
    drawn = Counter[str]()
    rows = list(before)
    while len(rows) < len(before) + count and (found := draws.next(Counts(seen, audited, drawn))):
        draw, target, pair = found
        seen.add(pair.pair)
        drawn[draw] += 1
        if draw == "audit":
            audited.add(pair.pair)
        rows.append({**pair._asdict(), "draw": draw, "target": target})
    return rows


@dataclass(frozen=True)
class Reviewer:
    """A simulated reviewer."""

    dice: Dice
    error: float
    seed: tuple[object, ...]

    def answers(self, shown: Sequence[Mapping[str, Any]], count: int, group: Mapping[str, str]) -> pl.DataFrame:
        """Answers on the first pairs and then on some of them again, `count` in all, as `read_answers` gives them."""
        rng = numpy_generator("reviewer", *self.seed)
        again = round(REPEATS * count)
        rows = [dict(row) for row in shown[: count - again]]
        for at in rng.choice(len(rows), min(again, len(rows)), replace=False).tolist():
            rows.append({**rows[at], "draw": "repeat", "population": None})
        start = datetime(2026, 1, 1, tzinfo=UTC)
        for number, row in enumerate(rows, start=1):
            row |= {"reviewer": "simulated", "number": number, "group": group[row["case_id"]], "split": "pool"}
            row |= {"mask_a": str(row["slot_a"]), "mask_b": str(row["slot_b"]), "a_side": "left", "seconds": 5.0}
            row |= {
                "time": start + timedelta(seconds=5 * number),
                "answer": self._answer(row, bool(rng.random() < self.error)),
            }
        slots = {"slot_a": pl.Int32(), "slot_b": pl.Int32()}
        return pl.DataFrame(rows, schema=schema.VERDICTS.columns | slots)

    def _answer(self, row: Mapping[str, Any], errs: bool) -> str:
        a, b = (self.dice[row["case_id"], row[f"slot_{side}"]] for side in "ab")
        return "equal" if a == b else "a" if (a > b) != errs else "b"


# ---- intervals -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A judge or a pair set of a judge on the pool."""

    kind: str
    judge: str
    pairs: pl.DataFrame
    """Pairs as of `pairs_of_set`."""
    wrong: np.ndarray
    """1 for a pair in the wrong order, one half for equal true Dice, f64 `[pair]`."""

    @property
    def noise(self) -> float:
        """Share of wrong pairs in the pool, which the interval has to cover."""
        return float(self.wrong.mean())

    def measured(self, answers: Answers, scores: pl.DataFrame) -> Measured:
        if self.kind == "judge":
            of_judge = scores.select("case_id", "proposal", score=f"score_{self.judge}")
            return Measured("judge", self.judge, by_judge(answers.drawn, of_judge), NOTHING_KNOWN, self.judge)
        worse = pl.when(pl.col("better") == pl.col("slot_a")).then("slot_b").otherwise("slot_a")
        ordered = self.pairs.select("case_id", chosen="better", rejected=worse)
        return Measured("pairs", self.judge, by_pairs(answers.drawn, ordered), NOTHING_KNOWN, self.judge, len(ordered))


JUDGED = ("flip", "gaussian", "size_bias")


def targets(population: Population, dice: Dice, judged: Sequence[str] = JUDGED) -> Iterator[Target]:
    """Every judge with all pairs that it orders, and with the pairs of its best over its worst mask."""
    panel, proposals = population.panel, population.proposals
    for judge in judged:
        strategy = PairSet.model_validate({"judge": judge, "strategy": {"kind": "top_bottom"}})
        of_set = pairs_of_set(panel.lazy().drop("true_dice"), proposals, strategy, "validation", 0, None)
        for kind, pairs in (("judge", pairs_of_judge(panel.lazy(), proposals, judge, "validation")), ("pairs", of_set)):
            gap = np.array(
                [
                    dice[case, better] - dice[case, b if better == a else a]
                    for case, a, b, better in pairs.select("case_id", "slot_a", "slot_b", "better").iter_rows()
                ]
            )
            yield Target(kind, judge, pairs, (1 - np.sign(gap)) / 2)


def _known(panel: pl.DataFrame) -> tuple[Dice, dict[str, str]]:
    dice = {(case, slot): value for case, slot, value in panel.select("case_id", "proposal", "true_dice").iter_rows()}
    return dice, dict(panel.select("case_id", "group").iter_rows())


def interval_rows(
    seeds: int,
    errors: Sequence[float] = ERRORS,
    numbers: Sequence[int] = NUMBERS,
    judged: Sequence[str] = JUDGED,
) -> list[dict[str, Any]]:
    """Coverage and width of the interval of the noise rate, per target, error rate and number of answers."""
    found = []
    with drawn_and_judged(POPULATION, judged) as population:
        dice, group = _known(population.panel)
        for target in targets(population, dice, judged):
            reviews = [
                shown_pairs(
                    Draws(target.judge, stratified(target.pairs, seed, target.kind), None, 0.0, seed, "validation", 1),
                    max(numbers),
                )
                for seed in range(seeds)
            ]
            for error in errors:
                for number in numbers:
                    rows = []
                    for seed, shown in enumerate(reviews):
                        reviewer = Reviewer(dice, error, (target.kind, target.judge, error, number, seed))
                        answers = Answers(reviewer.answers(shown, number, group))
                        rows.append(answers_row(target.measured(answers, population.panel), answers, 20))
                    found.append(
                        {"kind": target.kind, "judge": target.judge, "noise": target.noise, "error": error}
                        | {"answers": number, "seeds": seeds}
                        | _summary(rows, target.noise)
                    )
    return found


def _summary(rows: Sequence[Mapping[str, Any]], truth: float) -> dict[str, Any]:
    """Seeds with an interval, seeds whose interval holds the truth, mean of the estimates and of the widths."""
    given = [row for row in rows if row["noise_low"] is not None]
    covered = sum(row["noise_low"] <= truth <= row["noise_high"] for row in given)
    return {
        "estimated": len(given),
        "covered": covered,
        "mean": float(np.mean([row["noise"] for row in given])) if given else None,
        "width": float(np.mean([row["noise_high"] - row["noise_low"] for row in given])) if given else None,
    }


def mixed_rows(
    seeds: int, error: float = 0.05, number: int = 100, judged: Sequence[str] = JUDGED
) -> list[dict[str, Any]]:
    """Coverage and width as of `interval_rows` for judges, when the reviewer has answered other pairs too.

    The pool is small (50 cases), so other answers fall on many of its pairs. `number` pairs are drawn for the judge:
    alone, after twice as many of the draw `doubt`, after all pairs of the pair set of the judge, and in turn with as
    many of the draw `doubt`.
    """
    found = []
    with drawn_and_judged(1, JUDGED) as population:
        dice, group = _known(population.panel)
        panel = population.panel.lazy().drop("true_dice")
        doubts = doubtful(panel, population.proposals, JUDGED, "validation")
        for judge in judged:
            target, of_set = targets(population, dice, [judge])
            rows: dict[str, list[dict[str, Any]]] = {}
            others: dict[str, int] = {}
            for seed in range(seeds):
                alone = Draws(judge, stratified(target.pairs, seed, "judge"), None, 0.0, seed, "validation", 1)
                in_turn = replace(alone, doubt=doubts)
                doubt = replace(alone, audit=None, doubt=doubts)
                the_set = replace(alone, target="the set", audit=stratified(of_set.pairs, seed, "set"))
                reviews = {
                    "alone": shown_pairs(alone, number),
                    "after doubt": shown_pairs(alone, number, shown_pairs(doubt, 2 * number)),
                    "after the set": shown_pairs(alone, number, shown_pairs(the_set, len(of_set.pairs))),
                    "in turn with doubt": shown_pairs(in_turn, 2 * number),
                }
                for name, shown in reviews.items():
                    reviewer = Reviewer(dice, error, ("mixed", judge, name, seed))
                    answers = Answers(reviewer.answers(shown, round(len(shown) / (1 - REPEATS)), group))
                    rows.setdefault(name, []).append(
                        answers_row(target.measured(answers, population.panel), answers, 20)
                    )
                    others[name] = sum(row["target"] != judge for row in shown)
            found += [
                {"judge": judge, "noise": target.noise, "pairs": len(target.pairs), "error": error}
                | {"review": name, "answers": number, "others": others[name], "seeds": seeds}
                | _summary(part, target.noise)
                for name, part in rows.items()
            ]
    return found


def label_rows(seeds: int, cases: int = 50) -> list[dict[str, Any]]:
    """Widths of the intervals by `cases` labelled cases, and by as many answers, on the same targets."""
    found = []
    with drawn_and_judged(POPULATION, JUDGED) as population:
        dice, group = _known(population.panel)
        names = population.panel["case_id"].unique(maintain_order=True).to_list()
        for target in targets(population, dice):
            of_pair = target.pairs["case_id"].to_numpy()
            ends = []
            for seed in range(seeds):
                rng = numpy_generator("labels", seed)
                inside = np.isin(of_pair, rng.choice(names, cases, replace=False))
                # A labelled case gives the mean over all of its pairs, as the audit on labels does.
                of_case = pl.DataFrame({"case": of_pair[inside], "wrong": target.wrong[inside]})
                means = of_case.group_by("case", maintain_order=True).agg(pl.col("wrong").mean())
                groups = np.array([group[case] for case in means["case"]])
                ends.append(share_interval(means["wrong"].to_numpy(), groups, 500, seed))
            known = [one for one in ends if one.low is not None and one.high is not None]
            covered = sum(one.low <= target.noise <= one.high for one in known)  # type: ignore[operator]
            width = float(np.mean([one.high - one.low for one in known]))  # type: ignore[operator]
            found.append(
                {"kind": target.kind, "judge": target.judge, "noise": target.noise, "labelled_cases": cases}
                | {"seeds": seeds, "covered": covered, "width": width}
            )
    return found


# ---- what a student gains ------------------------------------------------------------------------------------------

TOP_BASE = {"kind": "top_base", "min_disagreement": 16, "min_p_correct": 0.0}
BAR = "mean fitted"
DRAWS = ("audit", "doubt")
VERDICTS = 100


def review_parameters(seed: int, data: Path, draw: str) -> dict[str, Any]:
    """Knobs of one seed on polyps. `draw` is `none`, `audit` or `doubt`."""
    of = SETS["polyps"]
    knobs = parameters(of, seed, data, {}, RATES[1])
    reviewed = draw != "none"
    anchor = {"supervised": 10.0, "imitate": {"proposal": BAR, "weight": 10.0}}
    learns = {"objective": {"kind": "preference", "normaliser": "region", "beta": 3.0}, "anchor": anchor}
    pairs: dict[str, Any] = {"none": {"judge": "none", "strategy": {"kind": "none"}}}
    students: dict[str, Any] = {}
    if reviewed:
        pairs |= {
            f"reviewed_{draw}": {"judge": "none", "strategy": {"kind": "reviewed"}},
            f"beside_{draw}": {"judge": "pairwise", "strategy": {"kind": "reviewed", "otherwise": TOP_BASE}},
            f"expert_{draw}": {"judge": f"expert_{draw}", "strategy": TOP_BASE},
        }
    else:
        pairs["judge"] = {"judge": "pairwise", "strategy": TOP_BASE}
        students["imitate"] = {
            "pairs": "none",
            "objective": {"kind": "imitate", "proposal": BAR},
            "anchor": {"supervised": 1.0},
        }
    students |= {name: {"pairs": name, **learns} for name in pairs if name != "none"}
    knobs["judges"] = {name: knobs["judges"][name] for name in ("agreement", "expected_dice", "pairwise")}
    knobs |= {"consensus": {}, "pairs": pairs, "students": students}
    if reviewed:
        knobs["review"] = {"verdicts": f"review/{draw}.parquet"}
        knobs["experts"] = {f"expert_{draw}": {"kind": "expert"}}
    return knobs


def _scored(params: str, draw: str) -> None:
    """All stages from the cases to the pairs, with the answers of one draw."""
    knobs = YAML(typ="safe").load(Path(params))
    given, cases, proposals = f"--params={params}", "--cases=data/cases", "--proposals=data/proposals"
    folds, verdicts = "--out-of-fold=data/out_of_fold", f"--verdicts={knobs['review']['verdicts']}"
    stage("prepare", "data/cases/manifest.json", given, "--out=data/cases")
    stage("base", "models/base/manifest.json", given, cases, "--out=models/base", "--history=history/base.csv")
    stage("propose", "data/proposals/manifest.json", given, cases, "--base=models/base", "--out=data/proposals", folds)
    for name in (*knobs["judges"], *knobs["experts"]):
        table, told = f"data/scores/{name}.parquet", [verdicts] if name in knobs["experts"] else []
        stage("judge", table, name, given, cases, proposals, folds, *told, "--models=models/judges", f"--out={table}")
    panel, audit = f"data/panel_{draw}.parquet", f"audit_{draw}"
    stage("panel", panel, given, cases, proposals, "--scores=data/scores", f"--out={panel}")
    stage("audit", f"{audit}/summary.json", given, cases, proposals, verdicts, f"--panel={panel}", f"--out={audit}")
    for name in knobs["pairs"]:
        made, pairs = f"data/pairs/{name}.drops.json", f"--out=data/pairs/{name}.parquet"
        stage("mine", made, name, given, cases, proposals, verdicts, f"--panel={panel}", f"--audit={audit}", pairs)


def _reviewed(draw: str, seed: int, error: float) -> None:
    """The table of 100 simulated answers on the pool, unless there is one."""
    from pipeline.measures.overlap import dice_to
    from pipeline.params import load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import ProposalStore
    from pipeline.store.tables import scan_table

    out = Path(f"review/{draw}.parquet")
    if out.exists():
        return
    params, proposals, cases = (
        load_params(Path("params_none.yaml")),
        ProposalStore(Path("data/proposals")),
        CaseStore(Path("data/cases")),
    )
    panel = scan_table(Path("data/panel_none.parquet"), schema.panel(params.judge_names)).drop("true_dice")
    audit = doubt = None
    if draw == "audit":
        of_set = pairs_of_set(panel, proposals, params.pairs["judge"], "pool", seed, None)
        audit = stratified(of_set, seed, "judge")
    else:
        doubt = doubtful(panel, proposals, params.judge_names, "pool")
    shown = shown_pairs(Draws("judge", audit, doubt, 0.0, seed, "pool", 1), VERDICTS)
    of_case = {case.case_id: case for case in cases.split("pool")}
    seen = {row["case_id"] for row in shown}
    dice, hashes = {}, {}
    for name in sorted(seen):
        case = of_case[name]
        masks = proposals.masks(case)
        found = dice_to(cases.label(case), masks, len(cases.class_names)).tolist()
        dice |= {(name, slot): value for slot, value in enumerate(found)}
        hashes[name] = proposals.mask_hashes(case)
    answers = Reviewer(dice, error, ("students", draw, seed)).answers(
        shown, VERDICTS, {n: of_case[n].group for n in seen}
    )
    table = answers.with_columns(
        pl.Series(
            f"mask_{side}", [hashes[case][slot] for case, slot in answers.select("case_id", f"slot_{side}").rows()]
        )
        for side in "ab"
    )
    out.parent.mkdir(exist_ok=True)
    write_table(table, schema.VERDICTS, out, "a simulated reviewer")


def students_of_seed(seed: int, data: Path, out: Path, error: float) -> None:
    """Everything of one seed. What is there already is kept."""
    folder = out / f"seed_{seed}"
    data = data.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    Path("raw").mkdir(exist_ok=True)
    Path("raw/none").touch()
    for draw in ("none", *DRAWS):
        params, knobs = f"params_{draw}.yaml", review_parameters(seed, data, draw)
        with Path(params).open("w") as file:
            YAML().dump(knobs, file)
        if draw in DRAWS:
            _reviewed(draw, seed, error)
        _scored(params, draw)
        if draw == "none":
            measured(params, "base")
        for name, student in knobs["students"].items():
            trained(params, name, student["pairs"])
            measured(params, name)


def gain_rows(out: Path) -> list[dict[str, Any]]:
    """Gain in test Dice over the base of each arm, and over the student of the judge alone, over all finished seeds."""
    folders = sorted(folder for folder in out.glob("seed_*") if (folder / "evaluation/expert_doubt.parquet").is_file())
    arms = ["imitate", "judge", *(f"{kind}_{draw}" for draw in DRAWS for kind in ("reviewed", "beside", "expert"))]

    def dice(folder: Path, name: str) -> pl.DataFrame:
        table = read_table(folder / f"evaluation/{name}.parquet", schema.EVALUATION)
        return table.group_by("case_id", maintain_order=True).agg(pl.col("dice").mean(), pl.col("group").first())

    found = []
    for name in arms:
        row: dict[str, Any] = {"arm": name, "seeds": len(folders)}
        for other in ("base", "judge"):
            pairs = [(dice(folder, name), dice(folder, other)) for folder in folders]
            gains = [one["dice"].to_numpy() - two["dice"].to_numpy() for one, two in pairs]
            ends = crossed_interval(gains, pairs[0][0]["group"].to_numpy(), 2000, 0) if pairs else NOTHING_KNOWN
            row |= dict(zip((f"over_{other}", f"over_{other}_low", f"over_{other}_high"), ends, strict=True))
        found.append(row)
    return found


PATH = click.Path(path_type=Path)


@click.group(help=__doc__)
def main() -> None:
    pass


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    table = pl.DataFrame(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    table.with_columns(pl.selectors.float().round(4)).write_csv(out)
    with pl.Config(tbl_rows=100, tbl_cols=20):
        click.echo(table)


@main.command()
@click.option("--seeds", default=100, show_default=True)
@click.option("--out", type=PATH, required=True)
def intervals(seeds: int, out: Path) -> None:
    """How often the interval of the noise rate covers the truth."""
    out = out.resolve()
    _write(interval_rows(seeds), out)


@main.command()
@click.option("--seeds", default=100, show_default=True)
@click.option("--out", type=PATH, required=True)
def mixed(seeds: int, out: Path) -> None:
    """Whether answers on other pairs bias the audit."""
    out = out.resolve()
    _write(mixed_rows(seeds), out)


@main.command()
@click.option("--seeds", default=100, show_default=True)
@click.option("--out", type=PATH, required=True)
def labels(seeds: int, out: Path) -> None:
    """Widths of the intervals by 50 labelled cases."""
    out = out.resolve()
    _write(label_rows(seeds), out)


@main.command()
@click.option("--seed", type=int, required=True)
@click.option("--data", type=PATH, required=True, help="Folder of the data sets.")
@click.option("--out", type=PATH, required=True)
@click.option("--error", default=0.1, show_default=True, help="Error rate of the simulated reviewer.")
def students(seed: int, data: Path, out: Path, error: float) -> None:
    """Students with 100 answers by `audit`, by `doubt` and none, one seed on polyps."""
    students_of_seed(seed, data, out, error)


@main.command()
@click.option("--out", type=PATH, required=True, help="Folder of the seeds.")
@click.option("--table", type=PATH, required=True)
def gains(out: Path, table: Path) -> None:
    """Gains over all finished seeds."""
    _write(gain_rows(out), table)


if __name__ == "__main__":
    main()
