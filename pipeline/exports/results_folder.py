"""Export of students of an imported nnU-Net as a results folder of nnU-Net v2, one fold per student."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.cases.preprocess import Preprocess
from pipeline.errors import BadInput
from pipeline.exports.card import CARD, FACTS, FinishedRun, card_facts
from pipeline.exports.card_text import card_head, card_text
from pipeline.exports.hub import check_licence, headed
from pipeline.exports.new_folder import new_folder
from pipeline.exports.predict import ReadyModel
from pipeline.segmenter.imported.nnunet_origin import Origin
from pipeline.segmenter.output_bias import with_offsets
from pipeline.segmenter.seen import Seen
from pipeline.store.manifest import check_manifest, write_json

CHECKPOINT = "checkpoint_final.pth"
TRAINER = "nnUNetTrainer"
"""Trainer of every export. nnU-Net looks the trainer up by its name and builds the network of the trainer. This trainer
builds the network of the plans, which is the network that ran here, whatever the trainer of the base was."""


def export_results_folder(
    models: Mapping[str, ReadyModel], run: FinishedRun, out: Path, licence: str | None = None
) -> Path:
    """Write `nnUNetTrainer__NAMES__CONFIGURATION` to the folder `out`, and return its path.

    The folder holds `plans.json`, `dataset.json`, `seen.json`, and for each model by its name `fold_k` with the
    checkpoint and the model card. The first model is fold 0. Offsets of a student are added to the bias of the output
    layer. A failed export leaves no folder `out`.

    Raises `BadInput` as `export_model` does, for a model that does not come from a results folder of nnU-Net, for
    images that are prepared otherwise than in nnU-Net, and for models of different networks.
    """
    if licence is not None:
        check_licence(licence)
    origin = _common_origin(list(models.values()))
    _note_spacing(next(iter(models.values())))
    plans, dataset = json.loads(origin.plans), json.loads(origin.dataset)
    # A name of its own, so that a copy into nnU-Net's results does not replace the folder of the base.
    plans["plans_name"] = "-".join(models)
    name = f"{TRAINER}__{plans['plans_name']}__{origin.configuration}"
    with new_folder(out) as partial:
        folder = partial / name
        for fold, (title, found) in enumerate(models.items()):
            check_manifest(found.model.folder, content=True)
            facts = card_facts(title, found, run, licence)
            of_fold = folder / f"fold_{fold}"
            of_fold.mkdir(parents=True)
            start = {"plans": plans, "configuration": origin.configuration, "fold": fold, "dataset_json": dataset}
            torch.save(_checkpoint(found, start), of_fold / CHECKPOINT)
            (of_fold / CARD).write_text(headed(card_head(facts, "nnunet"), card_text(facts)))
            write_json(of_fold / FACTS, facts)
        # As nnU-Net writes them: in the order of the keys.
        (folder / "plans.json").write_text(json.dumps(plans, indent=4))
        (folder / "dataset.json").write_text(json.dumps(dataset, indent=4))
        Seen.of_all([found.model.seen_folder for found in models.values()]).save(folder)
    return out / name


def _common_origin(models: list[ReadyModel]) -> Origin:
    """Origin of all models. Raises `BadInput` for models that cannot be folds of one results folder."""
    first = models[0]
    for found in models:
        folder, architecture = found.model.folder, found.model.architecture
        if not architecture.planned:
            raise BadInput(
                f"{folder}: expected a network of a base of kind 'nnunet', found {architecture.name}, which nnU-Net "
                "does not build; export as safetensors or bundle"
            )
        origin = Origin.in_(architecture)
        if origin is None:
            raise BadInput(
                f"{folder}: expected the plans of nnU-Net in network.json, found none, because the base was imported "
                "by an older version; run `dvc repro`, then export again"
            )
        planned = Preprocess.model_validate_json(json.dumps(origin.preprocess))
        for what, expected, given in (
            ("preprocess", planned.canonical, found.input.preprocess.canonical),
            ("files", origin.files, found.input.files),
        ):
            if expected != given:
                raise BadInput(
                    f"{folder}: {what}: expected {expected!r}, as in nnU-Net, found {given!r}: nnU-Net would prepare "
                    "images otherwise than this model; export as safetensors"
                )
        if architecture != first.model.architecture:
            raise BadInput(
                f"{folder}: expected the network, plans and mirroring of {first.model.folder}, found others: the folds "
                "of a results folder share them; export the models one by one"
            )
    found_first = Origin.in_(first.model.architecture)
    assert found_first is not None
    return found_first


def _note_spacing(found: ReadyModel) -> None:
    """Say that only nnU-Net resamples new images, where the cases had the spacing of the plans.

    nnU-Net gives all pictures the same spacing.
    """
    pictures = found.input.files == "pictures" and found.model.architecture.dimensions == 2
    if found.input.preprocess.spacing is None and not pictures:
        print(
            "export: preprocess.spacing is null, so `segpref predict` keeps the voxels of an image with another "
            "spacing than that of the plans, and nnU-Net resamples the image: their masks differ",
            file=sys.stderr,
        )


def _checkpoint(found: ReadyModel, start: dict[str, Any]) -> dict[str, Any]:
    """Content of a checkpoint, with the keys that inference of nnU-Net reads. There is no state to train on from."""
    architecture = found.model.architecture
    # Also under the further names of layers with several names, which nnU-Net asks for.
    network = with_offsets(found.model)
    state = dict((found.model.load() if network is None else network).state_dict())
    axes = list(architecture.arguments["axes"])
    return {
        "network_weights": state,
        "trainer_name": TRAINER,
        "init_args": start,
        # nnU-Net fails on an empty tuple.
        "inference_allowed_mirroring_axes": tuple(sorted(axes.index(axis) for axis in architecture.mirror)) or None,
    }
