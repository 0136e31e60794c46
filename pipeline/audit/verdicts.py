"""Verdicts of the audit in plain language, per judge and pair set, and the warnings to users.

The rules look at the ends of 95 % intervals. An effect that the cases are too few to show is called "not shown".
- A measure that rests on fewer than `LEAST` patients has no interval, so nothing is shown by it.
- No headroom: the upper end of the headroom is below `HEADROOM`. The verdict on a judge then leaves out the lift.
- Headroom of all proposals: left if the lower end reaches `HEADROOM`, not shown if only the upper end does.
- The top pick beats the base if the lower end of the lift is above 0. It is worse if the upper end is below 0, and
  otherwise not shown to beat the base. The best fixed sampler is compared in the same way, by `lift_over_fixed`.
- Pairs are clearly better than a coin if the upper end of their noise rate is below one half.
- A judge is worth training on if its top pick beats the base and the pairs of a strategy are clearly better than a
  coin. Even then training needs an anchor: unanchored students lose to their base even on pairs that are right.
- DPO feels the noise weighted by |D|, RN-DPO feels the noise per pair. The verdict favours an objective only if the
  interval of the difference excludes 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from pipeline.measures.intervals import LEAST

HEADROOM = 0.005
"""Headroom in Dice that a judge needs to be of use: true Dice of the best proposal minus true Dice of the base."""
FEW = 10
"""Number of patients below which a verdict names the number of its patients."""

AuditRow = Mapping[str, Any]
AuditWarning = dict[str, str | None]
"""Keys `pairs`, the pair set of the warning (null if the warning is about all pair sets), and `text`."""


class Validation(NamedTuple):
    """Numbers of labelled validation cases with proposals."""

    cases: int
    groups: int  # patients
    empty: int  # cases without foreground in the truth


def judge_verdict(row: AuditRow, strategies: Sequence[AuditRow], groups: int, research: bool) -> str:
    """Verdict on one judge, from its row of `AUDIT_JUDGES` and its rows of `AUDIT_STRATEGIES`.

    `groups`: number of validation patients. `research`: whether the judge reads the truth of the cases that it scores.
    """
    said = ["research only, it knows the truth"] if research else []
    if not row["cases"]:
        return "; ".join([*said, "nothing is known: it scored no two distinct proposals of any validation case"])
    empty = _above(row, "headroom") < HEADROOM
    if empty:
        said.append(f"no headroom: the best proposals are {points_text(row, 'headroom')} Dice points above the base")
    else:
        said.append(f"top pick {_against_base(row)}, {_against_fixed(row)}")
    said += [text for text in (_noise(strategies), _unmined(strategies)) if text]
    if share := round(100 * row["abstained"]):
        said.append(f"abstains on {share} % of the proposals")
    if groups < FEW:
        said.append(f"measured on {_patients(groups)} only")
    if empty:
        return "; ".join([*said, "nothing can be gained by training on it"])
    return "; ".join(said if research else [*said, _advice(row, strategies)])


def headroom_verdict(row: AuditRow, groups: int) -> str:
    """Verdict on the headroom: whether the proposals of validation cases leave anything to learn.

    The headroom is what a student of a perfect judge could gain, and the most that another round from this base could
    gain. `groups`: number of validation patients.
    """
    low, high = row["headroom_low"], row["headroom_high"]
    best = f"the best proposals are {points_text(row, 'headroom')} Dice points above the base"
    if row["headroom"] is None:
        return "headroom unknown: no validation case with a label has proposals"
    if low is None or high is None:
        return f"headroom unknown: {best}, on {_patients(groups)} only"
    if high < HEADROOM:
        return f"no headroom shown: {best}; another round has nothing to learn from such proposals"
    if low < HEADROOM:
        return f"headroom not shown: {best}; more validation cases or other samplers may show some"
    return f"headroom left: {best}; no more than this can be gained from them"


def _against_base(row: AuditRow) -> str:
    lift = f"{points_text(row, 'lift')} Dice points"
    match _sign(row, "lift"):
        case 1:
            return f"beats the base by {lift}"
        case -1:
            return f"is worse than the base ({lift})"
    return f"is not shown to beat the base ({lift})"


def _against_fixed(row: AuditRow) -> str:
    """How the top pick compares with the best fixed sampler of other patients.

    That sampler may be another one in each fold, so the sampler that is best on all patients is only named beside.
    """
    than = {1: "better than", -1: "worse than", 0: "not shown to differ from"}[_sign(row, "lift_over_fixed")]
    return (
        f"{than} the sampler that is best on other patients ({points_text(row, 'lift_over_fixed')} Dice points; on all "
        f"patients '{row['fixed_sampler']}' is best)"
    )


def _noise(strategies: Sequence[AuditRow]) -> str:
    parts = [f"{percent_text(row, 'noise_rate')} of its {row['strategy']}" for row in strategies if row["mined"]]
    return f"{' and '.join(parts)} pairs are wrong" if parts else ""


def _unmined(strategies: Sequence[AuditRow]) -> str:
    names = [row["strategy"] for row in strategies if not row["mined"]]
    return f"no {' or '.join(names)} pair could be mined" if names else ""


def _advice(row: AuditRow, strategies: Sequence[AuditRow]) -> str:
    if strategies:
        mined = {one["strategy"]: _above(one, "noise_rate") < 0.5 for one in strategies if one["mined"]}
    else:
        mined = {"": _above(row, "pair_error") < 0.5}
    if not any(mined.values()):
        rates = [one["noise_rate"] for one in strategies if one["mined"]] if strategies else [row["pair_error"]]
        if rates and all(rate is not None and rate < 0.5 for rate in rates):
            return "do not train on it: too few patients to tell its pairs from a coin's"
        return "do not train on it, its pairs are not clearly better than a coin's"
    if _sign(row, "lift") < 1:
        return "do not train on it"
    doubtful = [name for name, clear in mined.items() if not clear]
    return "do not train on it without an anchor" + (f", nor on its {' or '.join(doubtful)} pairs" if doubtful else "")


def noise_verdict(row: AuditRow) -> str:
    """Objective that the noise favours, by the interval of the noise weighted by |D| minus the noise per pair."""
    return {1: "RN-DPO", -1: "DPO", 0: "undecided"}[_sign(row, "noise_difference")]


def warnings(
    judges: pl.DataFrame, pairs: pl.DataFrame, cases: Validation, notes: Mapping[str, str | None]
) -> list[AuditWarning]:
    """Warnings that a user must know before training. The report repeats them.

    `judges`, `pairs`: tables `AUDIT_JUDGES` and `AUDIT_PAIRS`. `notes`: notes on the calibration by pair set.
    """
    found: list[AuditWarning] = []
    if cases.groups < FEW:
        found.append(
            _warned(
                None,
                f"validation has {_patients(cases.groups)}: so few show little, fewer than {LEAST} nothing; label more "
                "validation cases before believing a judge",
            )
        )
    if cases.empty:
        text = (
            f"{cases.empty} of {cases.cases} validation cases have no foreground: a class that is absent counts 1 "
            "where the mask has none of it, else 0, so few such cases may decide lift, headroom and noise"
        )
        found.append(_warned(None, text))
    known = {row["judge"]: row for row in judges.iter_rows(named=True)}
    for row in pairs.iter_rows(named=True):
        name, judge = row["pairs"], known.get(row["judge"])
        if not row["mined"]:
            text = f"pair set '{name}': nothing could be mined on validation, so nothing is known about it"
            found.append(_warned(name, text))
            continue
        if judge and _sign(judge, "lift") < 1:
            text = (
                f"pair set '{name}': the top pick of judge '{row['judge']}' is not shown to beat the base "
                f"(lift {points_text(judge, 'lift')} Dice points)"
            )
            found.append(_warned(name, text))
        if _above(row, "noise_rate") >= 0.5:
            text = (
                f"pair set '{name}': {percent_text(row, 'noise_rate')} of its validation pairs are ordered wrongly, "
                "not clearly below one half; do not train on it without an anchor"
            )
            found.append(_warned(name, text))
    found += [_warned(name, f"pair set '{name}': {note}") for name, note in notes.items() if note]
    return found


def constant_picks(validation: pl.DataFrame, judge_of: Mapping[str, str]) -> list[AuditWarning]:
    """Warnings about judges that pick one and the same proposal in every case: their pairs are about no image.

    `validation`: rows of the panel. `judge_of`: judge by pair set.
    """
    found: list[AuditWarning] = []
    for name, judge in judge_of.items():
        score = pl.col(f"score_{judge}")
        best = validation.filter(score.is_not_null()).sort(score, descending=True, maintain_order=True)
        picks = best.unique("case_id", keep="first", maintain_order=True)
        if len(picks) > 1 and picks.select("sampler", "setting").n_unique() == 1:
            pick = " ".join(picks.select("sampler", "setting").row(0))
            text = (
                f"pair set '{name}': judge '{judge}' picks '{pick}' in all {len(picks)} validation cases, so its pairs "
                "prefer one fixed proposal and say nothing of single images"
            )
            found.append(_warned(name, text))
    return found


def nothing_known(answered: bool = False) -> list[AuditWarning]:
    """The only warning of an audit without a labelled validation case that has proposals.

    `answered`: whether there are answers of reviewers.
    """
    if answered:
        text = (
            "no validation case with a label has proposals: the noise of judges and pair sets is known from the "
            "answers of reviewers alone (audit/answers.parquet), lift and headroom are not known"
        )
        return [_warned(None, text)]
    text = (
        "nothing is known about the judges and the pair sets: no validation case with a label has proposals; "
        "label some cases and add 'validation' to propose.splits"
    )
    return [_warned(None, text)]


def _warned(pairs: str | None, text: str) -> AuditWarning:
    return {"pairs": pairs, "text": text}


def points_text(row: AuditRow, measure: str) -> str:
    """A measure in Dice points with its interval: `+0.8 [+0.3, +1.3]`."""
    return _estimate(row, measure, "+.1f", "")


def percent_text(row: AuditRow, measure: str) -> str:
    """A share with its interval: `29 % [22, 37]`."""
    return _estimate(row, measure, ".0f", " %")


def _estimate(row: AuditRow, measure: str, form: str, unit: str) -> str:
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "unknown"
    said = f"{100 * value:{form}}{unit}"
    return said if low is None or high is None else f"{said} [{100 * low:{form}}, {100 * high:{form}}]"


def _sign(row: AuditRow, measure: str) -> int:
    """1 or -1 if the interval lies above or below 0, otherwise 0; 0 without an interval."""
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def _above(row: AuditRow, measure: str) -> float:
    """Upper end of an interval; infinite without an interval, since any value is then possible."""
    high = row[f"{measure}_high"]
    return float("inf") if high is None else high


def _patients(groups: int) -> str:
    return f"{groups} patient or exam" if groups == 1 else f"{groups} patients or exams"
