"""Model cards: facts of a run, and their text with what is not known."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import ModelCard

from pipeline.errors import BadInput
from pipeline.exports.card import FinishedRun, card_facts
from pipeline.exports.card_text import card_head, card_text
from pipeline.exports.hub import headed
from pipeline.exports.predict import ready_model
from pipeline.params import load_params
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.seen import Seen
from pipeline.store import schema
from pipeline.store.manifest import sha256, write_json
from pipeline.store.tables import write_table
from tests.exports.test_export import finished
from tests.fixtures.builders import case_store
from tests.fixtures.chain import ROOT
from tests.fixtures.phantoms import disc
from tests.fixtures.trained import model_folder


def hash_of_library() -> str:
    """Of every file of `pipeline/` by its path."""
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    lines = [f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def commit_of_checkout() -> str | None:
    """Null where the tests run outside a git repository."""
    if not (ROOT / ".git").exists():
        return None
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def estimate(mean: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


METRICS: dict[str, Any] = {
    **{name: estimate(0.8, 0.7, 0.9) for name in ("dice", "nsd", "hd95", "assd")},
    "gain_over_base": {name: estimate(0.012, -0.003, 0.027) for name in ("dice", "nsd", "hd95", "assd")},
    "cases": 40,
    "groups": 12,
    "distance_unit": "mm",
    "peak": 0.812,
    "nsd_tolerance": 1.0,
    "worse_by": 0.02,
    "cases_worse": 3,
    "empty": {"missed": 2},
}
RECORD = {
    "pairs": "mined",
    "objective": {"kind": "preference", "normaliser": "region", "beta": 3.0},
    "anchor": {"supervised": 1.0},
    "pairs_mined": 77,
}


def facts(folder: Path, record: dict[str, Any] | None = None) -> dict[str, Any]:
    model = model_folder(folder / "model", (8, 8), weights=("base",) if record is None else ("last",), record=record)
    return card_facts("rn_dpo", ready_model(model), finished(folder))


def audited(folder: Path) -> None:
    """One judge and one pair set, with verdicts; warnings about all, about this pair set, and about another."""
    for table, file, row in (
        (schema.AUDIT_JUDGES, "judges", {"judge": "agreement", "cases": 6, "abstained": 0.0, "verdict": "not shown"}),
        (schema.AUDIT_PAIRS, "pairs", {"pairs": "mined", "judge": "agreement", "strategy": "top_bottom", "mined": 6}),
    ):
        frame = pl.DataFrame([row], schema={name: table.columns[name] for name in row})
        missing = [pl.lit(None, dtype).alias(name) for name, dtype in table.columns.items() if name not in row]
        write_table(frame.with_columns(missing), table, folder / f"audit/{file}.parquet", "a test")
    warnings = [{"text": text, "pairs": pairs} for text, pairs in (("W1", None), ("W2", "mined"), ("W3", "other"))]
    write_json(folder / "audit/summary.json", {"warnings": warnings})


def test_facts_of_a_student(tmp_path):
    """Six cases; two labelled ones are of one patient."""
    audited(tmp_path)
    write_json(tmp_path / "m/rn_dpo.json", METRICS)
    found = facts(tmp_path, RECORD)
    assert found["data"]["splits"]["labelled"] == {"cases": 2, "groups": 1, "has_label": 2}
    assert found["data"]["splits"]["test"] == {"cases": 2, "groups": 2, "has_label": 2}
    assert found["judge"]["name"] == found["judge"]["kind"] == "agreement"
    assert found["pairs"]["strategy"]["kind"] == "top_bottom"
    assert found["audit"] == {"judge": "not shown", "pairs": None, "warnings": ["W1", "W2"]}
    assert found["hashes"]["weights"] == sha256(tmp_path / "model/last.safetensors")
    assert found["hashes"]["cases_manifest"] == sha256(tmp_path / "cases/manifest.json")
    assert found["hashes"]["pairs"] is None
    assert found["hashes"]["code"]["pipeline"] == hash_of_library()
    assert found["hashes"]["code"]["commit"] == commit_of_checkout()
    json.dumps(found, allow_nan=False)


def test_test_results_without_their_summary_are_no_unknown_accuracy(tmp_path):
    """Runs of older versions have the table alone. A card must not say that the model was not evaluated."""
    assert facts(tmp_path, RECORD)["metrics"] is None
    (tmp_path / "m").mkdir()
    (tmp_path / "m/rn_dpo.parquet").touch()
    with pytest.raises(BadInput, match=r"m/rn_dpo\.json: no such file; run the stage that writes it"):
        facts(tmp_path, RECORD)


def test_a_student_of_other_pairs_is_refused(tmp_path):
    """Pairs of another judge than params.yaml names, and pairs that were mined again after the training."""
    facts(tmp_path, RECORD)
    file, mined = tmp_path / "p/mined.parquet", finished(tmp_path).params.pairs["mined"]
    empty = pl.DataFrame(schema=schema.PAIRS.columns)
    write_table(empty, schema.PAIRS, file, mined)
    assert facts(tmp_path, {**RECORD, "pairs_sha256": sha256(file)})["hashes"]["pairs"] == sha256(file)
    advice = r"run `dvc repro train@rn_dpo evaluate@rn_dpo`, then export again"
    with pytest.raises(BadInput, match=rf"learned from other pairs than .*expected SHA-256 0, found .*{advice}"):
        facts(tmp_path, {**RECORD, "pairs_sha256": "0"})
    write_table(empty, schema.PAIRS, file, mined.model_copy(update={"judge": "another"}))
    with pytest.raises(BadInput, match=rf"found pairs of PairSet.judge='another'.*{advice}"):
        facts(tmp_path, {**RECORD, "pairs_sha256": sha256(file)})


@pytest.mark.parametrize("own", ["base", "rn_other"])
def test_the_results_of_another_model_are_not_shown(tmp_path, own):
    """Exported as `rn_dpo`: the folder of the base, which has no record, and that of another student."""
    record = None if own == "base" else RECORD | {"name": own}
    write_json(tmp_path / "model" / MODELS, {})
    with pytest.raises(BadInput, match=rf"model: expected the model 'rn_dpo', .*, found '{own}'; export it as '{own}'"):
        facts(tmp_path, record)


def test_the_card_of_a_student(tmp_path):
    audited(tmp_path)
    write_json(tmp_path / "m/rn_dpo.json", METRICS)
    text = card_text(facts(tmp_path, RECORD))
    for line in (
        "| labelled | 2 | 1 | 2 |",
        "| Dice | 0.800 [0.700, 0.900] | +0.012 [-0.003, +0.027] |",
        "Measured on 40 test cases of 12 patients or groups, on the grids of their images.",
        "3 cases lost more than 0.02 Dice against the base.",
        "- objective: preference (beta: 3.0, normaliser: region)",
        "- judge: agreement (agreement)",
        "- judge: not shown",
        "- warning: W2",
        "- classes: 0 background, 1 class_1, 2 class_2",
        "- the data are not known to hold a second site; the accuracy at other sites is unknown",
    ):
        assert line in text
    assert "W3" not in text


def head_of(found: dict[str, Any], form: str = "bundle") -> Any:
    """Head of the card as the Hub's own library reads it."""
    return ModelCard(headed(card_head(found, form), card_text(found))).data


def test_the_head_holds_what_was_measured(tmp_path):
    """Of a student on pairs; a distance that no case has is left out, and the names say what was averaged."""
    write_json(tmp_path / "m/rn_dpo.json", {**METRICS, "hd95": estimate(None)})
    head = head_of(facts(tmp_path, RECORD) | {"license": "cc-by-4.0"})
    assert (head.license, head.library_name, head.pipeline_tag) == ("cc-by-4.0", "monai", "image-segmentation")
    assert head.tags == ["medical", "segpref", "preference-learning"]
    assert head.metrics == ["dice", "nsd", "assd"]
    late = ", mean over the late checkpoints of training"
    measured = {result.metric_name: result.metric_value for result in head.eval_results}
    assert measured == {f"test {name}{late}": 0.8 for name in ("Dice", "NSD", "ASSD (mm)")}
    assert head.model_name == "rn_dpo"
    assert {result.dataset_name for result in head.eval_results} == {"none, 40 test cases"}


def test_the_head_holds_nothing_that_is_not_known(tmp_path):
    """No licence, no results, no data set of the Hub."""
    found = facts(tmp_path)
    head = head_of(found, "safetensors").to_dict()
    assert head == {
        "library_name": "segpref",
        "pipeline_tag": "image-segmentation",
        "tags": ["medical", "segpref"],
    }
    assert "- licence: not stated; those who trained the model must state it" in card_text(found)
    assert "licence: not stated" not in card_text(found | {"license": "mit"})


def test_names_that_look_like_truth_values_stay_names(tmp_path):
    """YAML 1.1, which the Hub's library reads, takes a bare `no` for false."""
    assert ModelCard(headed({"license": "no", "tags": ["on", "1e3"]}, "text")).data.tags == ["on", "1e3"]


def test_intervals_of_few_patients_are_left_out(tmp_path):
    few = METRICS | {"groups": 4, "dice": estimate(0.8), "gain_over_base": {"dice": estimate(0.012)}}
    write_json(tmp_path / "m/rn_dpo.json", few)
    text = card_text(facts(tmp_path, RECORD))
    assert "| Dice | 0.800 | +0.012 |" in text
    assert "No interval is given, since intervals of fewer than 5 patients are not reliable." in text


@pytest.mark.parametrize(
    ("record", "learned"),
    [(None, "The model learned from no judge."), (RECORD, "Not audited: the error rate of the judge")],
)
def test_what_is_not_known_is_said(tmp_path, record, learned):
    text = card_text(facts(tmp_path, record))
    assert "Not evaluated: the accuracy of the masks is unknown." in text
    assert learned in text
    assert "Sites: not stated." in text


def test_groups_are_stated_where_a_case_has_one_of_another_name(tmp_path):
    assert facts(tmp_path)["data"]["groups_stated"]
    case_store(tmp_path / "cases", [disc((8, 8), 2.0)] * 2, ["labelled", "test"])
    run = FinishedRun(load_params(tmp_path / "params.yaml"), tmp_path / "cases", *(tmp_path / name for name in "pam"))
    alone = card_facts("base", ready_model(tmp_path / "model"), run)
    assert not alone["data"]["groups_stated"]
    text = card_text(alone | {"metrics": METRICS | {"groups": 4}})
    assert "| split | cases | cases (no patients stated) | with a label |" in text
    assert "Measured on 40 test cases (no patients stated), on the grids of their images." in text
    assert "No interval is given, since intervals of fewer than 5 cases are not reliable." in text


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("unit", "intensities divided by 255"),
        ("zscore", "intensities shifted and scaled to mean 0 and standard deviation 1, per image and channel"),
        (
            ["minmax", "unit"],
            "intensities by channel: scaled linearly so that the minimum is 0 and the maximum is 1, per",
        ),
        (
            {"range": [-57, 164], "to": [0, 1], "clip": True},
            "intensities scaled from the range -57 to 164 to the range 0 to 1, clipped",
        ),
    ],
)
def test_how_intensities_are_prepared_is_said_in_words(tmp_path, how, words):
    found = facts(tmp_path)
    found["input"]["preprocess"]["normalise"] = how
    assert words in card_text(found)


@pytest.mark.parametrize(("resize", "windows"), [(None, True), ([8, 8], False), ([8, 4], False), ([8, 9], True)])
def test_windows_overlap_only_where_the_grid_is_larger(tmp_path, resize, windows):
    found = facts(tmp_path)
    found["input"]["preprocess"]["resize"] = resize
    assert ("window 8 x 8; larger images by overlapping windows\n" in card_text(found)) is windows
    assert ("window 8 x 8\n" in card_text(found)) is not windows


@pytest.mark.parametrize(
    ("ranker", "pairs", "believed"),
    [
        ("truth", "ranked by the labels of the labelled cases", "labelled cases: the model learned from no judge."),
        ({"kind": "agreement"}, "ranked by the judge agreement", "judge agreement during training. The error rate on"),
    ],
)
def test_pairs_that_are_made_online_say_who_ranked_them(tmp_path, ranker, pairs, believed):
    """And warnings of the audit are in the text even where there is no judge to audit."""
    audited(tmp_path)
    objective = {"kind": "mapo", "ranker": ranker}
    text = card_text(facts(tmp_path, RECORD | {"pairs": "none", "objective": objective}))
    assert f"- pairs: made during training from the student's own hypotheses, {pairs}\n" in text
    assert believed in text
    assert "- warning: W1" in text


def test_terms_of_an_anchor_that_are_0_are_left_out(tmp_path):
    imitate = {"proposal": "mean fitted", "weight": 0.5}
    found = facts(tmp_path, RECORD | {"anchor": {"supervised": 1.0, "kl": 0.0, "imitate": imitate}})
    assert "- anchor: imitate mean fitted 0.5, supervised 1\n" in card_text(found)
    found["training"]["anchor"] = {"supervised": 0.0}
    assert "- anchor: none\n" in card_text(found)


@pytest.mark.parametrize(
    ("dice", "best", "words"),
    [
        ((0.2, 0.5, 0.7), 20, "best on validation at step 20 of 20, its last evaluation, so more steps may be better"),
        ((0.2, 0.7, 0.5), 10, "best on validation at step 10 of 20\n"),
        ((0.7, 0.5, 0.2), 0, "best on validation at step 0 of 20, before any training"),
        (None, None, "its best step is unknown"),
    ],
)
def test_the_card_says_which_step_of_the_base_was_best(tmp_path, dice, best, words):
    """A base of 20 steps. Without its history nothing is said of a best step."""
    if dice is not None:
        rows = [
            f"base,{step},,{value},{str(step == best).lower()}" for step, value in zip((0, 10, 20), dice, strict=True)
        ]
        (tmp_path / "h").mkdir()
        (tmp_path / "h/base.csv").write_text("\n".join(["model,step,loss,validation_dice,best", *rows]))
    model = model_folder(tmp_path / "model", (8, 8))
    text = card_text(card_facts("rn_dpo", ready_model(model), finished(tmp_path)))
    assert f"- the base, trained in this run with DiceCE on the labelled cases; {words}" in text
    assert "plateau" not in text


def test_the_card_says_whether_a_student_was_best_at_its_last_step(tmp_path):
    """Of the record: 160 steps, the best at 96."""
    assert "- steps: 160; best on validation at step 96 of 160\n" in card_text(facts(tmp_path, RECORD))
    last = facts(tmp_path, RECORD | {"best_step": 160})
    assert "- steps: 160; best on validation at step 160 of 160, its last evaluation" in card_text(last)
    assert "- steps: 0, no training\n" in card_text(facts(tmp_path, RECORD | {"best_step": 0, "steps": 0}))


def test_where_the_base_is_from(tmp_path):
    found = facts(tmp_path)
    assert "- the base, trained in this run with DiceCE on the labelled cases" in card_text(found)
    found["training"]["imported"] = {"kind": "bundle", "sha256": "ab12", "notes": ["resampled as MONAI does"]}
    text = card_text(found)
    assert "- the base, imported and not trained in this run: a MONAI bundle, SHA-256 `ab12`\n- note: resampled" in text


def test_a_student_says_where_its_base_is_from(tmp_path):
    """Of the run's base folder, where there is one."""
    text = card_text(facts(tmp_path, RECORD))
    assert "## Training\n\n- started from a base of unknown origin\n- objective: preference" in text
    run = replace(finished(tmp_path), base=tmp_path / "base")
    for imported, words in (
        (None, "- started from the base, trained in this run with DiceCE on the labelled cases"),
        (
            {"kind": "checkpoint", "sha256": "ab12", "notes": ["a note"]},
            "- started from the base, imported and not trained in this run: weights, SHA-256 `ab12`\n- note: a note\n"
            "- objec",
        ),
    ):
        write_json(tmp_path / "base" / MODELS, {"imported": imported})
        assert words in card_text(card_facts("rn_dpo", ready_model(tmp_path / "model"), run))


def test_the_folder_of_the_data_is_named_without_its_path(tmp_path):
    assert "\nRead as: test, folder `none`.\n" in card_text(facts(tmp_path))
    info = tmp_path / "cases/cases.json"
    write_json(info, json.loads(info.read_text()) | {"files": None})  # as of phantoms
    run = FinishedRun(load_params(tmp_path / "params.yaml"), tmp_path / "cases", *(tmp_path / name for name in "pamb"))
    assert "\nRead as: test.\n" in card_text(card_facts("base", ready_model(tmp_path / "model"), run))


def test_whether_all_that_it_has_seen_is_known(tmp_path):
    words = "- the model started from another model whose training images are unknown; if test cases were among those"
    found = facts(tmp_path)
    assert words in card_text(found)
    Seen(complete=True).save(tmp_path / "model")
    assert words not in card_text(found | {"all_seen_known": Seen.of(tmp_path / "model").complete})


@pytest.mark.parametrize(
    ("weights", "words"), [("last", "the last of these checkpoints"), ("best", "the checkpoint of the best")]
)
def test_the_limits_say_which_weights_were_measured(tmp_path, weights, words):
    write_json(tmp_path / "m/rn_dpo.json", METRICS)
    found = facts(tmp_path, RECORD) | {"weights": weights}
    sentence = "- metrics are means over the late checkpoints of training; the weights of this model are "
    assert sentence + words in card_text(found)
    assert sentence not in card_text(found | {"metrics": None})
