"""The choice of the student that may replace the base, from validation tables made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from pipeline.errors import BadInput
from pipeline.exports.predict import ready_model
from pipeline.measures.intervals import simultaneous_lower_bounds
from pipeline.promotion.knobs import Promotion
from pipeline.promotion.promote import BOOTSTRAP_SEED, PromotionFiles, decide, promote
from pipeline.promotion.record import Considered, PromotionRecord
from pipeline.segmenter.seen import Seen
from pipeline.store import schema
from pipeline.store.manifest import check_manifest, write_manifest
from pipeline.store.tables import write_table
from stages.export import main as export
from stages.predict import main as predict
from tests.exports.test_export import finished
from tests.exports.test_predict import write_png
from tests.fixtures.trained import model_folder

KNOBS = Promotion(max_worse=0.1, bootstrap=2000)
WORSE_BY = 0.02
MINUS = "\N{MINUS SIGN}"


def table(dice: Sequence[float], groups: Sequence[str] | None = None) -> pl.DataFrame:
    """Table of `EVALUATION` with one class, each case a patient unless `groups` says otherwise."""
    rows = [
        {
            **{"case_id": f"c{i:03d}", "class": 1, "group": f"p{i:03d}", "dice": value, "dice_peak": value},
            **{"nsd": 1.0, "hd95": 0.0, "assd": 0.0, "distance_unit": "px", "volume_error": 0.0},
            **{"truth_empty": False, "prediction_empty": False},
        }
        for i, value in enumerate(dice)
    ]
    frame = pl.DataFrame(rows, schema=schema.EVALUATION.columns)
    return frame if groups is None else frame.with_columns(group=pl.Series(groups))


def gains(mean: float, patients: int = 20, spread: float = 0.01) -> np.ndarray:
    """As many gains of mean - spread as of mean + spread."""
    return mean + spread * np.where(np.arange(patients) % 2, 1.0, -1.0)


def decision(
    gained: dict[str, np.ndarray],
    objections: dict[str, str] | None = None,
    knobs: Promotion = KNOBS,
    first_base: np.ndarray | None = None,
) -> PromotionRecord:
    """The choice among students with these gains over a base of Dice .5; `first_base`: Dice above that of the base."""
    patients = len(next(iter(gained.values()), np.zeros(20)))
    bases = [table(np.full(patients, 0.5))]
    if first_base is not None:
        bases.append(table(0.5 + first_base))
    against = {name: (objections or {}).get(name) for name in gained}
    return decide(against, {name: table(0.5 + gain) for name, gain in gained.items()}, bases, knobs, WORSE_BY)


def of(record: PromotionRecord, name: str) -> Considered:
    return next(student for student in record.students if student.name == name)


# ---- the decision ------------------------------------------------------------------------------------------------


def test_a_student_whose_lower_bound_is_above_0_is_promoted() -> None:
    """Gains .03 -+ .01 in 20 patients: standard error .01 sqrt(20/19) / sqrt(20) = .0023, so the bound is near .026."""
    found = decision({"good": gains(0.03)})
    assert found.promoted == "good"
    compared = of(found, "good").over_base
    assert compared.gain == pytest.approx(0.03)
    assert compared.lower_bound == pytest.approx(0.03 - 1.73 * 0.0023, abs=0.0005)
    assert compared.share_worse == 0
    assert found.reason.startswith("Student 'good' may replace the base: its gain over the base is +3.00 Dice points, ")
    assert found.reason.endswith("on 20 validation patients and corrected for 1 candidate.")


def test_below_fifteen_patients_nothing_is_promoted() -> None:
    """However large the gain is."""
    found = decision({"good": gains(0.3, patients=14)})
    assert found.promoted is None
    assert found.reason == (
        "No student may replace the base: validation has 14 patients, fewer than promotion.min_patients (15)."
    )
    assert of(found, "good").over_base.lower_bound is None
    assert decision({"good": gains(0.3, patients=15)}).promoted == "good"


def test_patients_are_counted_and_not_cases() -> None:
    """20 cases of 10 patients."""
    groups = [f"p{i // 2:03d}" for i in range(20)]
    base, student = table(np.full(20, 0.5), groups), table(0.5 + gains(0.3), groups)
    found = decide({"good": None}, {"good": student}, [base], KNOBS, WORSE_BY)
    assert (found.promoted, found.patients) == (None, 10)


def test_a_student_that_a_wrong_judge_made_worse_is_not_promoted() -> None:
    """And the reason names the student that came nearest."""
    found = decision({"worse": gains(-0.03), "same": gains(0.0)})
    assert found.promoted is None
    assert found.reason.startswith("No student may replace the base: student 'same' came nearest, and the lower bound")
    assert "Dice points, not above 0" in of(found, "worse").reason


def test_of_two_candidates_the_larger_bound_is_promoted_and_both_bounds_are_corrected() -> None:
    """The bounds are those of `simultaneous_lower_bounds` of both, which lie below those of each alone."""
    generator = np.random.default_rng(0)
    gained = {
        "first": 0.02 + 0.02 * generator.standard_normal(20),
        "second": 0.03 + 0.02 * generator.standard_normal(20),
    }
    found = decision(gained)
    bounds = [of(found, name).over_base.lower_bound for name in gained]
    values = np.stack(list(gained.values()))
    assert bounds == pytest.approx(simultaneous_lower_bounds(values, 2000, BOOTSTRAP_SEED).low)
    for name, bound in zip(gained, bounds, strict=True):
        alone = of(decision({name: gained[name]}), name).over_base.lower_bound
        assert alone is not None
        assert bound is not None
        assert bound < alone
    assert found.promoted == "second"
    assert of(found, "first").reason == "student 'second' has a larger lower bound"
    assert "corrected for 2 candidates" in found.reason


def test_of_equal_students_the_first_is_promoted() -> None:
    assert decision({"b": gains(0.03), "a": gains(0.03)}).promoted == "b"


def test_a_gain_for_most_patients_does_not_pay_for_losses_of_many() -> None:
    """17 of 20 patients gain .1, and 3 lose .03: 15 % are worse. 2 of 20 are exactly the limit of 10 %.

    A loss of .02 is no loss: only more than .02 counts.
    """
    for lost, size, promoted in ((3, 0.03, None), (2, 0.03, "one"), (3, 0.02, "one")):
        gained = np.full(20, 0.1)
        gained[:lost] = -size
        found = decision({"one": gained})
        assert found.promoted == promoted
    gained[:3] = -0.03
    assert of(decision({"one": gained}), "one").reason == (
        "15 % of the patients lost more than 2.0 Dice points against the base, more than promotion.max_worse (10 %)"
    )


def test_the_next_best_is_promoted_where_the_best_harms_too_many() -> None:
    harmful = np.full(20, 0.2)
    harmful[:3] = -0.03
    assert decision({"harmful": harmful, "safe": gains(0.03)}).promoted == "safe"


def test_a_student_that_used_hidden_truth_is_neither_promoted_nor_counted() -> None:
    """Its gain is shown without a bound, and the bound of the other is that of one candidate."""
    found = decision({"oracle": gains(0.3), "good": gains(0.03)}, {"oracle": "judge 'oracle' reads the truth"})
    assert found.promoted == "good"
    oracle = of(found, "oracle")
    assert (oracle.candidate, oracle.reason) == (False, "judge 'oracle' reads the truth")
    assert oracle.over_base.gain == pytest.approx(0.3)
    assert oracle.over_base.lower_bound is None
    assert of(found, "good") == of(decision({"good": gains(0.03)}), "good")


def test_without_candidates_nothing_is_promoted() -> None:
    found = decision({"oracle": gains(0.3)}, {"oracle": "judge 'oracle' reads the truth"})
    assert found.reason == "No student may replace the base: none of the students is a candidate."
    assert decision({}).reason == "No student may replace the base: there are no students."


def test_a_later_round_must_beat_the_first_base_too() -> None:
    """The base lost .02 against the first base, so a gain of .01 over the base is still a loss of .01."""
    first = np.full(20, 0.02)
    found = decision({"one": gains(0.01, spread=0.005)}, first_base=first)
    assert found.promoted is None
    assert decision({"one": gains(0.01, spread=0.005)}).promoted == "one"
    one = of(found, "one")
    assert one.over_first_base is not None
    assert one.over_first_base.gain == pytest.approx(-0.01)
    assert one.reason.startswith("the lower bound of its gain over the first base is")
    both = decision({"one": gains(0.05)}, first_base=first)
    assert both.promoted == "one"
    assert "and its gain over the first base is +3.00 Dice points" in both.reason


def test_tables_of_other_cases_are_refused() -> None:
    with pytest.raises(BadInput, match="expected the cases and classes of the base segmenter"):
        decide({"one": None}, {"one": table(np.ones(19))}, [table(np.ones(20))], KNOBS, WORSE_BY)


def test_every_decision_says_what_is_not_corrected_for() -> None:
    for record in (decision({"good": gains(0.03)}), decision({})):
        assert "Earlier runs and rounds on the same validation cases are not corrected for" in record.limits


# ---- the folder --------------------------------------------------------------------------------------------------


def validated(folder: Path, gain: float) -> PromotionFiles:
    """A project whose one student has weights and this gain on validation."""
    for name, dice in (("base", np.full(20, 0.5)), ("rn_dpo", 0.5 + gains(gain))):
        write_table(table(dice), schema.EVALUATION, folder / f"validation/{name}.parquet", "a test")
    weights = ("last", "best", "step_000002")
    model = model_folder(folder / "models/students/rn_dpo", (8, 8), weights=weights, record={"late": ["step_000002"]})
    Seen(frozenset("a"), frozenset("b"), complete=True).save(model)
    write_manifest(model, "a test")
    return PromotionFiles(folder / "validation", folder / "models/students", folder / "models/promoted")


def test_the_folder_of_a_promoted_student_predicts_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its masks are those of the student, and the card says how the student was chosen."""
    files = validated(tmp_path, 0.03)
    record = promote({"rn_dpo": None}, files, KNOBS, WORSE_BY)
    assert PromotionRecord.of(files.out) == record
    assert {path.name for path in files.out.iterdir()} == {
        *("last.safetensors", "network.json", "input.json", "seen.json", "student.json"),
        *("promotion.json", "manifest.json"),
    }
    check_manifest(files.out, content=True)
    student = files.students / "rn_dpo"
    for name in ("last.safetensors", "seen.json"):
        assert (files.out / name).read_bytes() == (student / name).read_bytes()
    assert ready_model(files.out).model.name == "last"
    write_png(tmp_path / "images/a.png", (8, 9))
    run = finished(tmp_path)
    monkeypatch.chdir(tmp_path)
    for model, out in ((files.out, "one"), (student, "two")):
        assert CliRunner().invoke(predict, [str(model), "images", out]).exit_code == 0
    assert Path("one/a.png").read_bytes() == Path("two/a.png").read_bytes()
    result = CliRunner().invoke(export, ["promoted", "--format", "safetensors", "--cases", str(run.cases)])
    assert result.output == (
        "export: safetensors of rn_dpo in exports/promoted_safetensors; read "
        "exports/promoted_safetensors/MODEL_CARD.md before you share it\n"
    )
    card = Path("exports/promoted_safetensors/MODEL_CARD.md").read_text()
    assert f"- chosen among the students on validation: {record.reason} {record.limits}" in card


def test_a_folder_without_a_promoted_student_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of an earlier promotion are gone."""
    promote({"rn_dpo": None}, validated(tmp_path, 0.03), KNOBS, WORSE_BY)
    files = validated(tmp_path, -0.03)
    record = promote({"rn_dpo": None}, files, KNOBS, WORSE_BY)
    assert [path.name for path in files.out.iterdir()] == ["promotion.json"]
    finished(tmp_path)
    write_png(tmp_path / "images/a.png", (8, 9))
    monkeypatch.chdir(tmp_path)
    for command, line in (
        (predict, ["models/promoted", "images", "masks"]),
        (export, ["promoted", "--format", "bundle"]),
    ):
        result = CliRunner().invoke(command, line)
        assert result.exit_code == 2
        assert f"error: models/promoted: expected the student that was promoted, found none. {record.reason}" in (
            result.output
        )
        assert "Use the base (models/base), or choose a student of models/students yourself" in result.output


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    """The content is plain JSON without NaN."""
    found = []
    for name in ("one", "two"):
        files = validated(tmp_path / name, 0.03)
        promote({"rn_dpo": None}, files, KNOBS, WORSE_BY)
        found.append({path.name: path.read_bytes() for path in files.out.iterdir()})
    assert found[0] == found[1]
    assert json.loads(found[0]["promotion.json"])["promoted"] == "rn_dpo"


def test_a_record_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "promotion.json").write_text('{"promoted": 3}')
    with pytest.raises(BadInput, match=r"promotion.json: expected the record of a promotion, found an error at"):
        PromotionRecord.of(tmp_path)
