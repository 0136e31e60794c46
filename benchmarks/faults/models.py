"""Faults of models of the user as the base: weights, folders, bundles and programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.faults.damage import Make, cut, edit_json, raw, remove, text
from benchmarks.faults.entry import BASE, Bad, nothing
from pipeline.cases.preprocess import Preprocess
from tests.fixtures.foreign import NETWORK, Canary, network, write_bundle
from tests.fixtures.trained import model_folder

MODEL = "raw/model.pt"
SAFE = "raw/model.safetensors"
FOLDER = "raw/model"
_UNET = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
}

_base = partial(Bad, kind="Models as the base: weights and folders", start="cases", line=BASE)
_foreign = partial(Bad, kind="Models as the base: bundles and programs", start="cases", line=BASE)


def _with(model: str, **block: Any) -> dict[str, Any]:
    return {"model": model, "base": block, "students": {}, "propose.samplers": {}, "judges": {}, "pairs": {}}


FILE = _with(MODEL, kind="checkpoint", network=NETWORK)
SAFE_FILE = _with(SAFE, kind="checkpoint", network=NETWORK)
OF_FOLDER = _with(FOLDER, kind="checkpoint")
BUNDLE = _with(FOLDER, kind="bundle")
PROGRAM = _with("raw/model.ts", kind="program", window=[20, 24], trust=True)


def _state(change: Callable[[dict[str, torch.Tensor]], Any], **knobs: Any) -> Make:
    """A file with what `change` makes of the weights of a network."""
    return lambda: torch.save(change(dict(network(**knobs).state_dict())), MODEL)


def _nan(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    last = list(state)[-1]
    return state | {last: state[last] * torch.nan}


def _safe(share: float) -> Make:
    def make() -> None:
        save_file(network().state_dict(), SAFE)
        cut(SAFE, share)()

    return make


def _folder(change: Make = nothing, **knobs: Any) -> Make:
    """A model folder like that of a base of these cases, and then a change."""

    def make() -> None:
        described = {"class_names": ["background", "foreground"], "channel_names": ["grey"]}
        info = json.loads(Path("data/cases/cases.json").read_text())
        described |= {key: info[key] for key in ("orientation", "convert", "files")}
        preprocess = Preprocess.model_validate_json(json.dumps(info["preprocess"]))
        model_folder(Path(FOLDER), (20, 24), **{"classes": 2, "preprocess": preprocess, **described, **knobs})
        change()

    return make


def _bundle(network_block: dict[str, Any] | None = None, **blocks: Any) -> Make:
    return lambda: write_bundle(Path(FOLDER), {"network_def": network_block or _UNET, **blocks})


def _transform(name: str, **arguments: Any) -> dict[str, Any]:
    step = {"_target_": name, "keys": "image", **arguments}
    return {"preprocessing": {"_target_": "Compose", "transforms": [step]}}


def _program(outputs: int = 2) -> Make:
    def make() -> None:
        torch.jit.trace(network(outputs), torch.zeros(1, 1, 20, 24)).save("raw/model.ts")

    return make


WEIGHTS = [
    _base("a file that is not there", nothing, "raw/model.pt", FILE),
    _base("another kind of file", text("raw/model.h5", ""), "raw/model.h5", {**FILE, "model": "raw/model.h5"}),
    _base("no network of the weights", _state(dict), "base.network", _with(MODEL, kind="checkpoint")),
    _base("weights that are NaN", _state(_nan), "model.pt", FILE),
    _base("weights as integers", _state(lambda s: {k: v.int() for k, v in s.items()}), "model.pt", FILE),
    _base("weights of another network", _state(lambda s: dict(list(s.items())[:-2])), "model.pt", FILE),
    _base("weights of three classes", _state(dict, outputs=3), "model.pt", FILE),
    _base("weights for volumes", _state(dict, dimensions=3), "model.pt", FILE),
    _base("an unknown prefix", _state(lambda s: {f"student.{k}": v for k, v in s.items()}), "model.pt", FILE),
    _base("a whole network that runs code", lambda: torch.save(Canary(Path("canary")), MODEL), "model.pt", FILE),
    _base("no weights in the file", _state(lambda s: {"epoch": 3}), "model.pt", FILE),
    _base("a file that is cut off", lambda: (_state(dict)(), cut(MODEL)()), "model.pt", FILE),
    _base("safetensors that are cut off", _safe(0.6), "model.safetensors", SAFE_FILE),
    _base("an empty safetensors file", _safe(0), "model.safetensors", SAFE_FILE),
    _base("text behind `.pt`", text(MODEL, "version https://git-lfs"), "model.pt", FILE),
    _base(
        "a network that MONAI lacks", _state(dict), "base.network.name", {**FILE, "base.network": {"name": "NNUNet"}}
    ),
    _base(
        "an argument that the network lacks",
        _state(dict),
        "base.network.arguments",
        {**FILE, "base.network": {**NETWORK, "arguments": {"depth": 4}}},
    ),
    _base("a folder without a model", lambda: Path(FOLDER).mkdir(), "raw/model", OF_FOLDER),
    _base("a folder of three classes", _folder(class_names=["a", "b", "c"], classes=3), "class_names", OF_FOLDER),
    _base("a folder with other preprocessing", _folder(preprocess=None), "preprocess", OF_FOLDER),
    _base("a folder with a damaged `network.json`", _folder(cut(f"{FOLDER}/network.json")), "network.json", OF_FOLDER),
    _base("a folder with a damaged `input.json`", _folder(cut(f"{FOLDER}/input.json")), "input.json", OF_FOLDER),
    _base(
        "a `network.json` that lacks a key",
        _folder(edit_json(f"{FOLDER}/network.json", window=None)),
        "network.json",
        OF_FOLDER,
    ),
    _base("a name of weights that is not there", _folder(), "raw/model", {**OF_FOLDER, "base.weights": "best"}),
    _base("several weights and no name", _folder(weights=("one", "two")), "raw/model", OF_FOLDER),
]

FOREIGN = [
    _foreign(
        "a bundle without a configuration",
        lambda: (_bundle()(), remove(f"{FOLDER}/configs/inference.json")()),
        "raw/model",
        BUNDLE,
    ),
    _foreign(
        "a bundle with a damaged configuration",
        lambda: (_bundle()(), cut(f"{FOLDER}/configs/inference.json")()),
        "inference.json",
        BUNDLE,
    ),
    _foreign(
        "a bundle without weights", lambda: (_bundle()(), remove(f"{FOLDER}/models/model.pt")()), "raw/model", BUNDLE
    ),
    _foreign(
        "a bundle with code in an expression",
        _bundle({**_UNET, "channels": "$__import__('os').listdir()"}),
        "inference.json",
        BUNDLE,
    ),
    _foreign(
        "a bundle with a network of its own",
        _bundle({**_UNET, "_target_": "scripts.nets.Mine"}),
        "inference.json",
        BUNDLE,
    ),
    _foreign("a bundle with an unknown transform", _bundle(**_transform("RandGibbsNoised")), "inference.json", BUNDLE),
    _foreign("a bundle with other intensities", _bundle(**_transform("NormalizeIntensityd")), "inference.json", BUNDLE),
    _foreign("a bundle of three classes", _bundle({**_UNET, "out_channels": 3}), "inference.json", BUNDLE),
    _foreign("a program that is not trusted", _program(), "raw/model.ts", {**PROGRAM, "base.trust": False}),
    _foreign("a program of three classes", _program(3), "raw/model.ts", PROGRAM),
    _foreign("a program with a window of volumes", _program(), "base.window", {**PROGRAM, "base.window": [8, 8, 8]}),
    _foreign("a damaged program", lambda: (_program()(), cut("raw/model.ts")()), "raw/model.ts", PROGRAM),
    _foreign("text behind `.ts`", raw("raw/model.ts", b"x"), "raw/model.ts", PROGRAM),
    _foreign(
        "a program to train",
        _program(),
        "students.supervised",
        {
            **PROGRAM,
            "students": {"supervised": {"pairs": "none", "objective": {"kind": "supervised"}}},
            "pairs": {"none": {"judge": "none", "strategy": {"kind": "none"}}},
        },
    ),
]
