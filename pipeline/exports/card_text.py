"""Text of a model card in Markdown, from the facts in `model_card.json`."""

from __future__ import annotations

from typing import Any

from pipeline.measures.intervals import LEAST
from pipeline.segmenter.student_record import anchor_terms
from pipeline.segmenter.validation_curve import best_step_text
from pipeline.store import schema

_NORMALISED = {
    "zscore": "shifted and scaled to mean 0 and standard deviation 1, per image and channel",
    "percentile": "clipped to the percentiles 0.5 and 99.5, then shifted and scaled to mean 0 and standard deviation "
    "1, per image and channel",
    "minmax": "scaled linearly so that the minimum is 0 and the maximum is 1, per image and channel",
    "unit": "divided by 255",
}
_IMPORTED = {
    "checkpoint": "weights",
    "bundle": "a MONAI bundle",
    "nnunet": "weights of a results folder of nnU-Net",
    "program": "a program (TorchScript or torch.export)",
}

_MEASURES = {"dice": "Dice", "nsd": "NSD", "hd95": "HD95", "assd": "ASSD"}
_LIBRARIES = {"safetensors": "segpref", "program": "pytorch", "bundle": "monai", "nnunet": "nnunetv2"}
"""Library that reads an export, by its format."""


def card_text(facts: dict[str, Any]) -> str:
    """Text of the card from the facts of `card.card_facts`. The text says of a null fact that it is unknown."""
    taken, network = facts["input"], facts["network"]
    parts = [
        f"# {facts['name']}",
        f"Segments {', '.join(taken['class_names'][1:])}. For research only: the model is no medical device, and a "
        "wrong mask looks like a right mask.",
        section("Model", _model(facts, network)),
        section("Input", _input(taken, network)),
        section("Data", _splits(facts["data"])),
        section("Training", _training(facts)),
        section("Test results", _results(facts)),
        section("Reliability of the judge", _believed(facts)),
        section("Intended use and limits", _limits(facts)),
        section("Versions and hashes", _provenance(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def card_head(facts: dict[str, Any], form: str) -> dict[str, Any]:
    """Head of the card in the form of the Hub, for an export in the format `form`. Only measured results are listed."""
    metrics = facts["metrics"]
    measured = (
        {} if metrics is None else {key: metrics[key]["mean"] for key in _MEASURES if metrics[key]["mean"] is not None}
    )
    return {
        "license": facts["license"],
        "library_name": _LIBRARIES[form],
        "pipeline_tag": "image-segmentation",
        "tags": ["medical", "segpref", *(["preference-learning"] if facts["pairs"] else [])],
        "metrics": list(measured),
        "model-index": [_index(facts, measured)] if measured else None,
    }


def _index(facts: dict[str, Any], measured: dict[str, float]) -> dict[str, Any]:
    """Test results in the form of the Hub's `model-index`."""
    metrics, data = facts["metrics"], facts["data"]
    late = ", mean over the late checkpoints of training" if "gain_over_base" in metrics else ""
    unit = {key: f" ({metrics['distance_unit']})" for key in ("hd95", "assd")}
    results = [
        {"type": key, "name": f"test {_MEASURES[key]}{unit.get(key, '')}{late}", "value": round(value, 4)}
        for key, value in measured.items()
    ]
    name = data["folder"] or data["kind"]
    source = {"type": data["kind"], "name": f"{name}, {metrics['cases']} test cases", "split": "test"}
    return {
        "name": facts["name"],
        "results": [{"task": {"type": "image-segmentation"}, "dataset": source, "metrics": results}],
    }


def section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", "", *lines])


def _model(facts: dict[str, Any], network: dict[str, Any]) -> list[str]:
    resize = facts["input"]["preprocess"]["resize"]
    fits = resize is not None and all(a <= b for a, b in zip(resize, network["window"], strict=True))
    lines = [
        f"- network: {_library(network)}, {network['dimensions']}D, {network['head']} head, window "
        f"{_by(network['window'])}{'' if fits else '; larger images by overlapping windows'}",
        f"- classes: {', '.join(f'{i} {name}' for i, name in enumerate(facts['input']['class_names']))}",
        f"- weights: `{facts['weights']}`",
    ]
    if facts["offsets"]:
        lines.append(f"- offsets added to the logits of the foreground classes: {facts['offsets']}")
    return lines


def _library(network: dict[str, Any]) -> str:
    """Name of the network with its library, and the mirroring of its inference."""
    # Names of MONAI's networks have no dot, and those of nnU-Net's plans have the module before the class.
    if "." not in network["name"]:
        return f"MONAI {network['name']}"
    axes = network["arguments"]["mirror"]
    mirrored = f"mean over mirrorings of the axes {', '.join(map(str, axes))}" if axes else "no mirroring"
    return f"nnU-Net's {network['name'].rsplit('.', 1)[-1]} ({mirrored})"


def _input(taken: dict[str, Any], network: dict[str, Any]) -> list[str]:
    lines = [f"- {channels_text(taken['channel_names'])}", f"- {prepared_text(taken['preprocess'])}"]
    if network["dimensions"] == 3:
        as_stored = f"as stored; files must be {taken['orientation']}"
        lines.append(f"- orientation: {'turned to RAS' if taken['preprocess']['orientation'] else as_stored}")
    return lines


def channels_text(names: list[str]) -> str:
    """Number and names of the channels in words."""
    return f"{len(names)} channel{'s' * (len(names) > 1)}: {', '.join(names)}"


def prepared_text(preprocess: dict[str, Any]) -> str:
    """The working grid and the normalisation of intensities (`preprocess`) in words."""
    grid = "the grid of each image"
    if preprocess["resize"]:
        grid = f"a grid of {_by(preprocess['resize'])} voxels"
    elif preprocess["spacing"]:
        grid = f"a grid of {_by(preprocess['spacing'])} mm"
    return f"prepared on {grid}, intensities {_normalised(preprocess['normalise'])}"


def _normalised(how: str | dict[str, Any] | list[Any]) -> str:
    """The normalisation of intensities (`preprocess.normalise`) in words."""
    if isinstance(how, list):
        return "by channel: " + "; ".join(map(_normalised, how))
    if isinstance(how, str):
        return _NORMALISED[how]
    (low, high), (bottom, top) = how["range"], how["to"]
    clipped = "clipped to that range" if how["clip"] else "not clipped"
    return f"scaled from the range {low:g} to {high:g} to the range {bottom:g} to {top:g}, {clipped}"


def _splits(data: dict[str, Any]) -> list[str]:
    groups = "patients or groups" if data["groups_stated"] else "cases (no patients stated)"
    rows = [f"| split | cases | {groups} | with a label |", "|---|---|---|---|"]
    for split in schema.SPLITS:
        found = data["splits"].get(split, {"cases": 0, "groups": 0, "has_label": 0})
        rows.append(f"| {split} | {found['cases']} | {found['groups']} | {found['has_label']} |")
    sites = f"Sites: {', '.join(data['sites'])}." if data["sites"] else "Sites: not stated."
    folder = f", folder `{data['folder']}`" if data["folder"] else ""
    return [*rows, "", f"Read as: {data['kind']}{folder}.", sites, *(f"Note: {note}." for note in data["notes"])]


def _training(facts: dict[str, Any]) -> list[str]:
    training, judge, pairs = facts["training"], facts["judge"], facts["pairs"]
    if training["objective"]["kind"] == "base":
        return [f"- {line}" for line in _base(training)]
    start = ["a base of unknown origin"] if facts["base"] is None else _base(facts["base"])
    lines = [
        *(f"- {line}" for line in [f"started from {start[0]}", *start[1:]]),
        f"- objective: {knobs_text(training['objective'])}",
        f"- anchor: {anchor_terms(training['anchor'])}",
        f"- steps: {training['steps']}"
        + (f"; {best_step_text(training['best_step'], training['steps'])}" if training["steps"] else ", no training"),
    ]
    if online := _online(training):
        return [*lines, f"- pairs: made during training from the student's own hypotheses, {online}"]
    if pairs is None:
        return [*lines, "- preference pairs: none"]
    mined = f"{pairs['name']}, {knobs_text(pairs['strategy'])}; {training.get('pairs_mined', 'unknown')} pairs"
    if judge is None:
        return [
            *lines,
            "- judge: none, reviewers ordered all pairs",
            f"- pairs: {mined}",
            *reviewed_text(facts["review"]),
        ]
    truth = "; the judge reads the truth, so the model is a ceiling for research" if judge["reads_truth"] else ""
    return [
        *lines,
        f"- judge: {judge['name']} ({judge['kind']}){truth}",
        f"- pairs: {mined}",
        *reviewed_text(facts["review"]),
    ]


def reviewed_text(review: dict[str, Any] | None) -> list[str]:
    """How many answers of how many reviewers the pairs rest on, as a list in Markdown."""
    if review is None:
        return []
    lines = []
    if pairs := review["pairs"]:
        lines.append(f"- {pairs['pairs']} pairs rest on {_answers(pairs)}")
    return [*lines, *(f"- expert {name} learned from {_answers(one)}" for name, one in review["experts"].items())]


def _answers(found: dict[str, Any]) -> str:
    if found["answers"] is None:
        return "an unknown number of answers"
    many = found["reviewers"]
    return f"{found['answers']} answers of {many} reviewer{'' if many == 1 else 's'}"


def _base(found: dict[str, Any]) -> list[str]:
    """Origin of the base: the first line, then the notes of its import."""
    imported = found["imported"]
    if imported is None:
        steps = found["steps_on_validation"]
        best = "its best step is unknown" if steps is None else best_step_text(steps["best"], steps["last"])
        return [f"the base, trained in this run with DiceCE on the labelled cases; {best}"]
    what = f"{_IMPORTED[imported['kind']]}, SHA-256 `{imported['sha256']}`"
    return [f"the base, imported and not trained in this run: {what}", *(f"note: {note}" for note in imported["notes"])]


def _online(training: dict[str, Any]) -> str | None:
    """Ranker of the pairs that are made during training, in words; None if no pairs are made during training."""
    if "ranker" not in training["objective"]:
        return None
    ranker = training["objective"]["ranker"]
    return (
        "ranked by the labels of the labelled cases"
        if ranker == "truth"
        else f"ranked by the judge {knobs_text(ranker)}"
    )


def _results(facts: dict[str, Any]) -> list[str]:
    metrics = facts["metrics"]
    if metrics is None:
        return ["Not evaluated: the accuracy of the masks is unknown."]
    unit = metrics["distance_unit"]
    stated = facts["data"]["groups_stated"]
    of = f"of {metrics['groups']} patients or groups" if stated else "(no patients stated)"
    rows = [
        f"Measured on {metrics['cases']} test cases {of}, on the grids of their images.",
        "",
        "| metric | mean and 95 % interval | gain over the base |",
        "|---|---|---|",
    ]
    gain = metrics.get("gain_over_base", {})
    for key, title in _MEASURES.items():
        of_unit = f" ({unit})" if key in ("hd95", "assd") else ""
        rows.append(f"| {title}{of_unit} | {_estimate(metrics[key])} | {_estimate(gain.get(key), sign=True)} |")
    if metrics["groups"] < LEAST:
        rows += [
            "",
            f"No interval is given, since intervals of fewer than {LEAST} {'patients' if stated else 'cases'} are not "
            "reliable.",
        ]
    late = "means over the checkpoints of the last fifth of training" if gain else "those of the base itself"
    return [
        *rows,
        "",
        f"The values are {late}. At the best validation step Dice is {metrics['peak']:.3f}. The tolerance of NSD is "
        f"{metrics['nsd_tolerance']:g} {unit}. "
        + (
            f"{metrics['cases_worse']} cases lost more than {metrics['worse_by']:g} Dice against the base. "
            if gain
            else ""
        )
        + f"Masks that are empty although the truth is not: {metrics['empty']['missed']}.",
    ]


def _believed(facts: dict[str, Any]) -> list[str]:
    audit = facts["audit"]
    warnings = [] if audit is None else [f"- warning: {text}" for text in audit["warnings"]]
    if facts["judge"] is None:
        return [_without_pair_set(facts["training"]), *([""] if warnings else []), *warnings]
    if audit is None:
        return ["Not audited: the error rate of the judge is unknown."]
    return [*verdicts_text(audit), *warnings]


def verdicts_text(audit: dict[str, Any]) -> list[str]:
    """The verdicts of the audit on a judge and on a pair set, as a list in Markdown."""
    return [
        f"- judge: {audit['judge'] or 'not in the audit'}",
        f"- objective that the noise of the pairs favours, DPO or RN-DPO: {audit['pairs'] or 'unknown'}",
    ]


def _without_pair_set(training: dict[str, Any]) -> str:
    online = _online(training)
    if online is None:
        return "The model learned from no judge."
    if training["objective"]["ranker"] == "truth":
        return f"The pairs were {online}: the model learned from no judge."
    return f"The pairs were {online} during training. The error rate on these pairs is unknown: no audit sees them."


def _limits(facts: dict[str, Any]) -> list[str]:
    data, metrics = facts["data"], facts["metrics"]
    lines = ["- for research on images like the training images; no clinical use"]
    if facts["license"] is None:
        lines.append("- licence: not stated; those who trained the model must state it before the model is shared")
    if len(data["sites"]) > 1:
        lines.append(f"- trained and tested on {len(data['sites'])} sites; the accuracy at other sites is unknown")
    else:
        lines.append("- the data are not known to hold a second site; the accuracy at other sites is unknown")
    if metrics is not None:
        lines.append(f"- measured on {metrics['cases']} cases of one split of one data set, with one seed")
    if not facts["all_seen_known"]:
        lines.append(
            "- the model started from another model whose training images are unknown; if test cases were among those "
            "images, the results are too good"
        )
    if metrics is not None and "gain_over_base" in metrics:
        which = {"last": "the last of these checkpoints", "best": "the checkpoint of the best validation step instead"}
        lines.append(
            "- metrics are means over the late checkpoints of training; the weights of this model are "
            f"{which.get(facts['weights'], facts['weights'])}"
        )
    if (promotion := facts["promotion"]) is not None:
        lines.append(f"- chosen among the students on validation: {promotion['reason']} {promotion['limits']}")
    if facts["judge"] is not None and facts["judge"]["reads_truth"]:
        lines.append("- learned from truth that no user has; do not compare the results with those of practical models")
    return lines


def _provenance(facts: dict[str, Any]) -> list[str]:
    hashes = facts["hashes"]
    pairs = f"`{hashes['pairs']}`" if hashes["pairs"] else "none"
    return [
        "- " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"- cases (SHA-256 of their manifest): `{hashes['cases_manifest']}`",
        f"- pairs: {pairs}",
        f"- weights: `{hashes['weights']}`",
        "- images that the model has seen: `seen.json`, in its folder and in exports as weights or program, lists the "
        "first digits of the SHA-256 of their files; whoever has such a file can tell that the model has seen it",
        f"- {code_text(hashes['code'])}",
    ]


def code_text(code: dict[str, Any]) -> str:
    """Commit and hash of the library (`card.code_facts`) in words."""
    commit = "no commit" if code["commit"] is None else f"commit {code['commit']}{' with changes' * code['dirty']}"
    return f"code: {commit}, files of `pipeline/` `{code['pipeline']}`"


def knobs_text(knobs: dict[str, Any]) -> str:
    """A block of knobs as `kind (knob: value, ...)`, without knobs that are null, false or empty."""
    told = {
        key: value
        for key, value in knobs.items()
        if key != "kind" and value not in (None, {}, []) and value is not False
    }
    listed = ", ".join(f"{key}: {knobs_text(v) if isinstance(v, dict) else v}" for key, v in told.items())
    kind = knobs.get("kind")
    return listed if kind is None else f"{kind} ({listed})" if listed else str(kind)


def _estimate(found: dict[str, float | None] | None, sign: bool = False) -> str:
    if found is None or found["mean"] is None:
        return "-"
    form = "+.3f" if sign else ".3f"
    if found["low"] is None:
        return f"{found['mean']:{form}}"
    return f"{found['mean']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def _by(numbers: list[Any] | tuple[Any, ...]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
