"""A trained model as something that others can use: weights, a program, or a MONAI bundle, each with its model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.errors import BadInput
from pipeline.exports.bundle import write_bundle
from pipeline.exports.card import CARD, FACTS, FinishedRun, card_facts
from pipeline.exports.card_text import card_text
from pipeline.exports.predict import ReadyModel
from pipeline.segmenter.knobs import RECORD
from pipeline.segmenter.program import load_program
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.weights import ARCHITECTURE
from pipeline.store.cases import INPUT
from pipeline.store.manifest import check_manifest, write_json, write_manifest

Format = Literal["safetensors", "program", "bundle"]
PROGRAM, DESCRIPTION = "model.pt2", "program.json"

TOLERANCE = 1e-4
"""Largest difference of a program's logits from the network's, as a share of the largest logit."""


def export_model(name: str, found: ReadyModel, run: FinishedRun, form: Format, out: Path) -> None:
    """Write the model and its card to `out`, which is there only when it is whole.

    Raises `BadInput` where `out` is not empty, where the model's folder is unfinished or has changed since it was
    written, and for what a format cannot hold.
    """
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out}: expected a new or empty folder, found files; choose another or remove them")
    check_manifest(found.model.folder, content=True)
    facts = card_facts(name, found, run)
    card = card_text(facts)
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
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
    if out.is_dir():
        out.rmdir()
    partial.replace(out)


def _write_weights(found: ReadyModel, out: Path) -> None:
    """A model folder: one set of weights, `network.json`, `input.json`, `seen.json` and, for a tuned threshold, its
    record."""
    if found.model.architecture.program:
        raise BadInput(f"{found.model.weights}: a program has no weights by name; share the file itself")
    for path in (found.model.weights, found.model.folder / ARCHITECTURE, found.model.folder / INPUT):
        shutil.copy(path, out / path.name)
    Seen.of(found.model.folder).save(out)
    if found.offsets:
        shutil.copy(found.model.folder / RECORD, out / RECORD)


def _write_program(found: ReadyModel, out: Path) -> None:
    """`model.pt2`, a `torch.export` program from a batch of windows to logits, `program.json`, which says the rest, and
    `seen.json`.

    Refused where it does not give the network's logits.
    """
    architecture = found.model.architecture
    if architecture.program:
        raise BadInput(f"{found.model.weights}: is a program already; share the file itself")
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
            "space": "one window of the working grid, padded with 0 at the ends of smaller images; larger images by "
            "windows that overlap by half, blended by a Gaussian of an eighth of the window",
        },
        "output": {
            "what": "logits" + (", of the foreground alone" if architecture.head == "sigmoid" else ", one per class"),
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
    """The program, and whether it takes batches of any size: where the network fixes its batch, it takes 2."""
    batch = torch.export.Dim("batch", min=1)
    reasons = []
    for dynamic in (({0: batch},), None):
        try:
            return torch.export.export(network, (example,), dynamic_shapes=dynamic), dynamic is not None
        except Exception as error:  # noqa: BLE001  torch.export raises whatever the traced code does
            reasons.append((str(error).strip() or type(error).__name__).splitlines()[0])
    raise BadInput(f"{folder}: torch.export cannot trace its network: {reasons[-1]}; export as safetensors")
