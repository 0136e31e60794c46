"""Import of a model of the user as the base: checks against the data, Dice on validation, files of a trained base."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import polars as pl
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.models import Model
from pipeline.segmenter.program import copy_program
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.weights import save_weights
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import sha256, write_json, write_manifest

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ImportedNetwork:
    """One network of an imported model."""

    architecture: Architecture
    source: Path
    """File of the weights, or of the program."""
    network: nn.Module


@dataclass(frozen=True)
class ImportedModel:
    """Networks of an imported model, and notes for the user on how they were read."""

    base: ImportedNetwork
    members: dict[str, ImportedNetwork] = field(default_factory=dict)
    snapshots: dict[str, ImportedNetwork] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    may_have_seen: bool = False
    """Whether the model may have seen test cases, and may have been trained on validation cases."""
    seen: Seen = field(default_factory=Seen)
    """Images that the model is known to have seen, beside those of a `seen.json`."""
    seen_to_do: str | None = None
    """What to do about cases that the model has seen. None: the advice of `Seen.check`."""
    folds: dict[str, str] = field(default_factory=dict)
    """Name of the network, `base` or a member, of every fold that held a labelled case out."""
    fold_of: dict[str, str] = field(default_factory=dict)
    """Fold by labelled case id, of the cases that a fold held out."""


class Importer(Protocol):
    """Contract of the kinds of imported bases: frozen knobs with a literal `kind`."""

    @property
    def kind(self) -> str: ...

    def read(self, model: Path, cases: CaseStore, device: str) -> ImportedModel:
        """Networks of a file or folder. Raises `BadInput` for a model that does not fit the cases."""
        ...


def import_base(
    cases: CaseStore,
    knobs: Importer,
    model: Path,
    augmentation: Augmentation,
    compute: Compute,
    out: Path,
    history: Path,
) -> None:
    """Write an imported model with the files of a trained base, and its Dice on validation.

    The files are weights or program, `network.json`, `input.json`, `seen.json`, `models.json`, the manifest, and a
    history with one row for the base and for each member. Raises `BadInput`, and writes nothing, if the model does not
    fit the data.
    """
    if not model.exists():
        raise BadInput(f"model: {model}: no such file or folder; paths are relative to the folder of params.yaml")
    if not (validation := cases.split("validation")):
        raise BadInput("base: no case in split 'validation', on which the base is measured; change splits")
    augmentation.check(len(cases.padded), len(cases.class_names))
    torch.set_num_threads(compute.threads)
    found = knobs.read(model, cases, compute.device)
    networks = {"base": found.base, **found.members}
    for name, one in {**networks, **found.snapshots}.items():
        where = f"{one.source}: model '{name}'"
        check_fits(one.architecture, cases, where)
        check_runs(one, compute, where)
    # The imported copy has seen the images that its source has seen.
    seen = Seen.of(model).joined(found.seen)
    notes = [*found.notes, *seen.check(cases, model, found.may_have_seen, found.seen_to_do)]
    for note in notes:
        print(f"base: {note}", file=sys.stderr)
    rows = []
    for name, one in networks.items():
        segmenter = Segmenter(one.network, one.architecture, compute)
        dice = segmenter.dice(cases.with_labels(validation, segmenter.window))
        rows.append({"model": name, "step": 0, "loss": None, "validation_dice": dice, "best": True})
    # All checks are done: from here on files are written.
    out.mkdir(parents=True, exist_ok=True)
    for name, one in {**networks, **found.snapshots}.items():
        own_folder = one.architecture != found.base.architecture
        written = Model(out / name, "base") if own_folder else Model(out, name)
        _write(one, written)
        cases.write_input(written.folder)
    seen.save(out)
    write_json(
        out / MODELS,
        {
            "members": list(found.members),
            "folds": {fold: {"model": name, "members": [], "snapshots": []} for fold, name in found.folds.items()},
            "fold_of": found.fold_of,
            "snapshots": list(found.snapshots),
            "imported": {"kind": knobs.kind, "sha256": sha256(found.base.source), "notes": notes},
        },
    )
    write_manifest(out, (knobs, compute))
    history.parent.mkdir(parents=True, exist_ok=True)
    types = {"step": pl.Int64(), "loss": pl.Float64(), "validation_dice": pl.Float64()}
    pl.DataFrame(rows, schema_overrides=types).write_csv(history)


def _write(found: ImportedNetwork, model: Model) -> None:
    found.architecture.save(model.folder)
    if found.architecture.program:
        copy_program(found.source, model.weights)
    else:
        save_weights(found.network, model.weights)


def check_fits(architecture: Architecture, cases: CaseStore, where: str) -> None:
    """Raise `BadInput` for a network with other axes, channels or classes than the cases."""
    for what, found, expected in (
        ("spatial axes", architecture.dimensions, len(cases.padded)),
        ("channels", architecture.channels, cases.channels),
        ("classes, background included", architecture.classes, len(cases.class_names)),
    ):
        if found != expected:
            raise BadInput(
                f"{where}: expected {expected} {what}, as the data has, found {found}; use a model of such data, or "
                "correct `data`"
            )


def check_runs(found: ImportedNetwork, compute: Compute, where: str) -> None:
    """Raise `BadInput` for a network that does not return finite logits of the expected shape for a window of noise."""
    architecture = found.architecture
    expected = (1, architecture.outputs, *architecture.window)
    # Of noise, because a network that divides by the standard deviation has no logits of a blank window.
    generator = torch.Generator().manual_seed(0)
    window = torch.randn((1, architecture.channels, *architecture.window), generator=generator).to(compute.device)
    asked = f"{where}: expected logits {list(expected)} of a window {list(window.shape)}"
    try:
        with torch.no_grad():
            logits = found.network.to(compute.device).eval()(window)
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise BadInput(f"{asked}, found an error: {reason}; correct `window` or the number of channels") from error
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != list(expected):
        raise BadInput(f"{asked}, found {shape}; correct `head`, `window` or the classes of the data")
    if wrong := int((~torch.isfinite(logits)).sum()):
        raise BadInput(
            f"{where}: expected finite logits of a window of noise, found {wrong} of {logits.numel()} NaN or infinite; "
            "train or fetch the model again"
        )


def listed(names: Sequence[str]) -> str:
    """Names for a message, in quotes; `none` without names."""
    return ", ".join(f"'{name}'" for name in names) or "none"
