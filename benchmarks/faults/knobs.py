"""Mistakes in `params.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults.damage import Make, raw, remove, text
from benchmarks.faults.entry import BASE, CHECK, PREPARE, PROPOSE, Bad, nothing

FILE = "params.yaml"
_file = partial(Bad, kind="`params.yaml`: the file", start="pictures", line=PREPARE)
_knob = partial(Bad, kind="`params.yaml`: keys and values", start="pictures", line=PREPARE)
_data = partial(Bad, kind="`params.yaml`: knobs that do not fit the data", start="cases", line=CHECK)
_base = partial(_data, line=BASE)
_drawn = partial(_data, start="run", line=PROPOSE)


def _edited(change: Callable[[str], str]) -> Make:
    return lambda: Path(FILE).write_text(change(Path(FILE).read_text()))


OF_FILE = [
    _file("no file", remove(FILE), FILE),
    _file("an empty file", raw(FILE, b""), FILE),
    _file("a list", text(FILE, "- seed\n- data\n"), FILE),
    _file("a tab", text(FILE, "seed: 0\ndata:\n\tkind: folders\n"), FILE),
    _file("a key that is there twice", _edited(lambda t: f"{t}\nseed: 4\n"), FILE),
    _file("Latin-1", lambda: Path(FILE).write_bytes("# Größe\nseed: 0\n".encode("latin-1")), FILE),
    _file("one block of all", text(FILE, "seed: 0\n"), FILE),
    _file("an entry that holds itself", text(FILE, "seed: &all\n  again: *all\n"), FILE),
]

OF_KEYS = [
    _knob("an unknown key", nothing, "splits.labeled", {"splits.labeled": 3}),
    _knob("an unknown block", nothing, "sampler", {"sampler": {}}),
    _knob("text in place of a number", nothing, "seed", {"seed": "zero"}),
    _knob("a number in place of a list", nothing, "preprocess.resize", {"preprocess.resize": 256}),
    _knob("a word in place of a count", nothing, "audit", {"audit.bootstrap": "yes"}),
    _knob("a number that is infinite", nothing, "evaluation.nsd_tolerance", {"evaluation.nsd_tolerance": float("inf")}),
    _knob("an unknown kind", nothing, "judges.mine", {"judges.mine": {"kind": "dice"}}),
    _knob("no kind", nothing, "judges.mine", {"judges.mine": {}}),
    _knob("a name that is no file name", nothing, "judges", {"judges.my/judge": {"kind": "agreement"}}),
    _knob("a judge that does not exist", nothing, "pairs.mined.judge", {"pairs.mined.judge": "oracle"}),
    _knob("a pair set that does not exist", nothing, "students.rn_dpo.pairs", {"students.rn_dpo.pairs": "best"}),
    _knob(
        "a student that learns pairs from an empty set", nothing, "students.rn_dpo", {"students.rn_dpo.pairs": "none"}
    ),
    _knob(
        "a student named `base`",
        nothing,
        "students.base",
        {"students.base": {"pairs": "none", "objective": {"kind": "supervised"}}},
    ),
    _knob(
        "a consensus of a judge that does not exist",
        nothing,
        "consensus.both",
        {"consensus.both": {"kind": "rank_mean", "judges": ["agreement", "another"]}},
    ),
    _knob("a table among the judges", nothing, "judges.mine", {"judges.mine": {"kind": "table", "path": "qc/a.csv"}}),
    _knob("students without a base", nothing, "students", {"base": None}),
    _knob("`model` without a base that reads a model", nothing, "model", {"model": "raw/model.pt"}),
    _knob(
        "`spacing` and `resize` at once",
        nothing,
        "preprocess",
        {"preprocess.spacing": [1.0, 1.0], "preprocess.resize": [8, 8]},
    ),
    _knob("a range from high to low", nothing, "preprocess.normalise", {"preprocess.normalise": {"range": [1.0, 0.0]}}),
    _knob("a negative count", nothing, "base.members", {"base.members": -1}),
]

OF_DATA = [
    _data(
        "`resize` of three axes for pictures",
        nothing,
        "preprocess.resize",
        {"preprocess.resize": [8, 8, 8]},
        line=PREPARE,
    ),
    _data(
        "`spacing` for pictures without a spacing", nothing, "case_0", {"preprocess.spacing": [1.0, 1.0]}, line=PREPARE
    ),
    _data("`orientation` for pictures", nothing, "case_0", {"preprocess.orientation": "RAS"}, line=PREPARE),
    _data(
        "two normalisations for one channel",
        nothing,
        "preprocess.normalise",
        {"preprocess.normalise": ["zscore", "unit"]},
        line=PREPARE,
    ),
    _data("a learned judge without folds", nothing, "judges.learned", {"judges.learned": {"kind": "pairwise"}}),
    _data(
        "a student that starts from a member that the base lacks",
        nothing,
        "students.rn_dpo.start",
        {"students.rn_dpo.start": "member_9"},
    ),
    _base("flips along an axis that pictures lack", nothing, "augmentation.flips", {"augmentation.flips": [0, 2]}),
    _base(
        "sided classes along an axis that pictures lack",
        nothing,
        "augmentation.swap_labels",
        {"augmentation.swap_labels": [[2, 1, 2]]},
    ),
    _base(
        "sided classes that the data lacks",
        nothing,
        "augmentation.swap_labels",
        {"augmentation.swap_labels": [[0, 1, 2]]},
    ),
    _base("more folds than patients", nothing, "folds", {"base.folds": 5}),
    _base("a network that MONAI lacks", nothing, "base.network.name", {"base.network.name": "Unet++"}),
    _base("a window of three axes", nothing, "base.network.window", {"base.network.window": [8, 8, 8]}),
    _base("a device that is not there", nothing, "compute.device", {"compute.device": "cuda:9"}),
    _drawn(
        "a sampler that flips an axis that pictures lack",
        nothing,
        "propose.samplers.tta",
        {"propose.samplers": {"tta": {"kind": "tta", "flips": [[2]]}}},
    ),
    _drawn(
        "a quarter turn with sided classes",
        nothing,
        "propose.samplers.tta",
        {
            "propose.samplers": {"tta": {"kind": "tta", "flips": [], "quarter_turns": [1]}},
            "augmentation.swap_labels": [[0, 1, 2]],
        },
    ),
    _drawn(
        "a member that the base lacks",
        nothing,
        "propose.samplers.mean",
        {"propose.samplers": {"mean": {"kind": "mean", "members": ["member_7"]}}},
    ),
    _drawn(
        "a layer that the network lacks",
        nothing,
        "propose.samplers.dropout",
        {"propose.samplers": {"dropout": {"kind": "mc_dropout", "rates": [0.3], "at": "layer_9"}}},
    ),
    _drawn(
        "snapshots that the base lacks",
        nothing,
        "propose.samplers.late",
        {"propose.samplers": {"late": {"kind": "snapshots"}}},
    ),
]
