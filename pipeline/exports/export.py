"""Export of trained models for others: weights, a program, a MONAI bundle, or a results folder of nnU-Net.

Each export has a model card.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.errors import BadInput
from pipeline.exports.bundle import write_bundle
from pipeline.exports.card import CARD, FACTS, FinishedRun, card_facts
from pipeline.exports.card_text import card_head, card_text
from pipeline.exports.hub import check_licence, headed
from pipeline.exports.new_folder import new_folder
from pipeline.exports.predict import ReadyModel, ready_model
from pipeline.exports.results_folder import export_results_folder
from pipeline.params import RESERVED, Params, entry
from pipeline.segmenter.architecture import ARCHITECTURE
from pipeline.segmenter.program import load_program
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.student_record import STUDENT_FILE
from pipeline.store.cases import INPUT
from pipeline.store.manifest import check_manifest, write_json, write_manifest

OneModel = Literal["safetensors", "program", "bundle"]
Format = Literal[OneModel, "nnunet"]
PROGRAM, DESCRIPTION = "model.pt2", "program.json"

TOLERANCE = 1e-4
"""Largest allowed difference between logits of a program and of its network, as a share of the largest logit."""


def models_of(names: Sequence[str], params: Params, model: Path | None, weights: str | None) -> dict[str, ReadyModel]:
    """Models by their own names, in the order of `names`: `base`, `promoted`, or students of `params`.

    The promoted student has its own name, under which its results are stored. `model` is the folder of a single model,
    and `weights` the name of its weights. Raises `BadInput` for unknown names and for a model that is named twice.
    """
    if model is not None and len(names) > 1:
        raise BadInput(f"--model: expected one NAME, found {', '.join(names)}; export them without --model")
    found: dict[str, ReadyModel] = {}
    for name in names:
        if name not in RESERVED:
            entry(params.students, name, "students")
        one = ready_model(model or Path("models" if name in RESERVED else "models/students") / name, weights)
        own = one.student if name == "promoted" and one.student else name
        if own in found:
            raise BadInput(f"NAME: expected every model once, found '{own}' twice; name it once")
        found[own] = one
    return found


def export_models(
    found: Mapping[str, ReadyModel], run: FinishedRun, form: Format, out: Path, licence: str | None = None
) -> Path:
    """Export models in a format, and return the file of the first card. Only the format `nnunet` takes several models.

    Raises `BadInput` as `export_model` and `export_results_folder` do.
    """
    if form == "nnunet":
        return export_results_folder(found, run, out, licence) / "fold_0" / CARD
    if len(found) > 1:
        raise BadInput(f"--format {form}: expected one NAME, found {', '.join(found)}; export them one by one")
    ((name, one),) = found.items()
    export_model(name, one, run, form, out, licence)
    return out / CARD


def export_model(
    name: str, found: ReadyModel, run: FinishedRun, form: OneModel, out: Path, licence: str | None = None
) -> None:
    """Write the model and its card to the folder `out`. A failed export leaves no folder `out`.

    `licence` is the licence of the model in the form of the Hub. Without a licence the card says that none is stated.
    Raises `BadInput` if `out` is not empty, if the model's folder is unfinished or was changed after it was written, if
    the format cannot hold the model, and for a licence of another form.
    """
    if licence is not None:
        check_licence(licence)
    with new_folder(out) as partial:
        check_manifest(found.model.folder, content=True)
        facts = card_facts(name, found, run, licence)
        card = headed(card_head(facts, form), card_text(facts))
        if form == "safetensors":
            _write_weights(found, partial)
        elif form == "program":
            _write_program(found, partial)
        else:
            write_bundle(found, partial, name, card)
        (partial / CARD).write_text(card)
        write_json(partial / FACTS, facts)
        if form == "safetensors":
            write_manifest(partial, (name, found.model.name))


def _write_weights(found: ReadyModel, out: Path) -> None:
    """Write a model folder: one set of weights, `network.json`, `input.json` and `seen.json`.

    A model with a tuned threshold also needs its record, which holds the offsets of the logits.
    """
    if found.model.architecture.program:
        raise BadInput(
            f"{found.model.weights}: expected a network with weights, found a program; share the file itself"
        )
    for path in (found.model.weights, found.model.folder / ARCHITECTURE, found.model.folder / INPUT):
        shutil.copy(path, out / path.name)
    Seen.of(found.model.folder).save(out)
    if found.offsets:
        shutil.copy(found.model.folder / STUDENT_FILE, out / STUDENT_FILE)


def _write_program(found: ReadyModel, out: Path) -> None:
    """Write `model.pt2`, `program.json` and `seen.json`.

    `model.pt2` is a `torch.export` program from a batch of windows to logits. `program.json` describes its input, its
    output and the preparation of images. Raises `BadInput` if the logits differ from the network's by more than
    `TOLERANCE`.
    """
    architecture = found.model.architecture
    if architecture.program:
        raise BadInput(f"{found.model.weights}: expected a network, found a program; share the file itself")
    if architecture.planned:
        raise BadInput(
            f"{found.model.folder}: expected a network whose windows are padded at their ends, found "
            f"{architecture.name}, which pads around the centre and mirrors; export as safetensors"
        )
    network = found.model.load().cpu()
    generator = torch.Generator().manual_seed(0)

    def windows(batch: int) -> torch.Tensor:
        return torch.randn((batch, architecture.channels, *architecture.window), generator=generator)

    program, dynamic = _exported(network, windows(2), found.model.folder)
    torch.export.save(program, out / PROGRAM)
    reloaded = load_program(out / PROGRAM, "cpu")
    worst = 0.0
    for batch in (1, 3) if dynamic else (2,):
        image = windows(batch)
        with torch.no_grad():
            ours, theirs = network(image), reloaded(image)
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
    if not worst <= TOLERANCE:
        raise BadInput(
            f"{found.model.folder}: expected the logits of the network within {TOLERANCE:g} of the largest, found a "
            f"difference of {worst:g}: this torch cannot export {architecture.name}; export as safetensors"
        )
    description: dict[str, Any] = {
        "input": {
            "shape": ["batch" if dynamic else 2, architecture.channels, *architecture.window],
            "dtype": "float32",
            "channels": found.input.channel_names,
            "space": "one window of the working grid; pad smaller images with 0 at the ends of their axes; cut larger "
            "images into windows that overlap by half, and blend them by a Gaussian of an eighth of the window",
        },
        "output": {
            "what": "logits" + (" of the foreground alone" if architecture.head == "sigmoid" else ", one per class"),
            "shape": ["batch" if dynamic else 2, architecture.outputs, *architecture.window],
            "classes": found.input.class_names,
            "head": architecture.head,
            "offsets": list(found.offsets),
        },
        "preprocess": found.input.preprocess.model_dump(mode="json"),
        "orientation": found.input.orientation,
        "convert": found.input.convert,
        "checked": {"largest_difference": worst, "tolerance": TOLERANCE},
    }
    write_json(out / DESCRIPTION, description)
    Seen.of(found.model.folder).save(out)


def _exported(network: torch.nn.Module, example: torch.Tensor, folder: Path) -> tuple[Any, bool]:
    """The exported program, and whether it takes batches of any size.

    A program of a network that fixes its batch size takes batches of 2.
    """
    batch = torch.export.Dim("batch", min=1)
    reasons = []
    for dynamic in (({0: batch},), None):
        try:
            return torch.export.export(network, (example,), dynamic_shapes=dynamic), dynamic is not None
        except Exception as error:  # noqa: BLE001  torch.export raises whatever the traced code does
            reasons.append((str(error).strip() or type(error).__name__).splitlines()[0])
    raise BadInput(f"{folder}: torch.export cannot trace the network: {reasons[-1]}; export as safetensors")
