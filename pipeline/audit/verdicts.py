"""What the audit's numbers say in plain language: a verdict per judge and pair set, and what to be warned of.

The rules, each on the ends of 95 % intervals, so that what a few cases cannot show is called not shown:
- of fewer than `LEAST` patients no interval is believed, and none is given: nothing is shown.
- no headroom: the upper end of the headroom is below `HEADROOM`; then nothing else is said of the lift. Over all
  proposals it is left where the lower end is not, and not shown in between.
- the top pick beats the base where the lower end of the lift is above 0, is worse where the upper end is below 0, and
  is not shown to beat it otherwise. Against the best fixed sampler likewise, by `lift_over_fixed`.
- pairs are clearly better than a coin where the upper end of their noise rate is below one half.
- a judge is worth training on where its top pick beats the base and the pairs of a strategy are clearly better than a
  coin, and then not without an anchor: unanchored students lose to their base even on pairs that are right.
- DPO feels the noise that is weighted by |D|, RN-DPO that per pair: whom it favours is decided only where the interval
  of their difference excludes 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

HEADROOM = 0.005
"""Dice that the best proposal of a case must be above the base for a judge to be of use."""
LEAST = 5
"""Patients below which resampling cannot give a 95 % interval: of four normal values even the extremes hold the mean in
85 of 100 cases, of two in 50."""
FEW = 10
"""Fewer patients than this are said to be few."""

AuditRow = Mapping[str, Any]
AuditWarning = dict[str, str | None]
"""`pairs`: the pair set that a warning is about, null if it is about all; `text`."""


def judge_verdict(row: AuditRow, strategies: Sequence[AuditRow], groups: int, research: bool) -> str:
    """Verdict on a row of `AUDIT_JUDGES`, with its rows of `AUDIT_STRATEGIES` and the number of validation patients.

    `research`: the judge looks at the truth of what it scores.
    """
    row, strategies = _believed(row, groups), [_believed(one, groups) for one in strategies]
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
    """Whether the proposals of validation cases leave anything to learn, from the best of each case less the base:
    what a student of a perfect judge could reach, and what another round from this base could gain at most."""
    row = _believed(row, groups)
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
    than = {1: "more than", -1: "less than", 0: "not shown to differ from"}[_sign(row, "lift_over_fixed")]
    return f"{than} always taking '{row['fixed_sampler']}' ({100 * (row['lift'] - row['lift_over_fixed']):+.1f})"


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
        return "do not train on it, its pairs are not clearly better than a coin's"
    if _sign(row, "lift") < 1:
        return "do not train on it"
    doubtful = [name for name, clear in mined.items() if not clear]
    return "do not train on it without an anchor" + (f", nor on its {' or '.join(doubtful)} pairs" if doubtful else "")


def noise_verdict(row: AuditRow, groups: int) -> str:
    """Whom the noise favours, from the interval of the noise weighted by |D| less that per pair."""
    return {1: "RN-DPO", -1: "DPO", 0: "undecided"}[_sign(_believed(row, groups), "noise_difference")]


def warnings(
    judges: pl.DataFrame, pairs: pl.DataFrame, groups: int, notes: Mapping[str, str | None]
) -> list[AuditWarning]:
    """What a user must know before training; the report repeats it. `notes` on the calibration, by pair set."""
    found: list[AuditWarning] = []
    if groups < FEW:
        found.append(
            _warned(
                None,
                f"validation has {_patients(groups)}: so few show little, fewer than {LEAST} nothing; label more "
                "validation cases before believing a judge",
            )
        )
    known = {row["judge"]: _believed(row, groups) for row in judges.iter_rows(named=True)}
    for row in (_believed(row, groups) for row in pairs.iter_rows(named=True)):
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


def nothing_known() -> list[AuditWarning]:
    """The one warning without a labelled validation case that has proposals."""
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


def _believed(row: AuditRow, groups: int) -> AuditRow:
    """The row without the ends of its intervals where they rest on too few patients."""
    if groups >= LEAST:
        return row
    return {name: None if name.endswith(("_low", "_high")) else value for name, value in row.items()}


def _sign(row: AuditRow, measure: str) -> int:
    """1 or -1 where the interval says so, 0 where it does not or there is none."""
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def _above(row: AuditRow, measure: str) -> float:
    """Upper end of an interval; anything is possible where there is none."""
    high = row[f"{measure}_high"]
    return float("inf") if high is None else high


def _patients(groups: int) -> str:
    return f"{groups} patient or exam" if groups == 1 else f"{groups} patients or exams"
