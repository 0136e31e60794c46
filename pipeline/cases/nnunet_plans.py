"""Plans of nnU-Net v2: axes and preprocessing of one configuration, compared with the prepared cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cases.files.checks import json_object
from pipeline.cases.preprocess import Preprocess
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from pipeline.store.cases import CaseStore

_READERS = {
    "SimpleITKIO": ("nifti", None),
    "NibabelIO": ("nifti", None),
    "NibabelIOWithReorient": ("nifti", "RAS"),
    "NaturalImage2DIO": ("pictures", None),
    "Tiff3DIO": ("pictures", None),
}
"""Family of files and knob `preprocess.orientation` of nnU-Net's readers."""
_AS_IT_IS = {"range": [0.0, 1.0], "to": [0.0, 1.0], "clip": False}
_RESAMPLING = "resample_data_or_seg_to_shape"


@dataclass(frozen=True)
class Plans:
    """One configuration of `plans.json`, with `dataset.json`."""

    path: Path
    name: str
    plans: dict[str, Any]
    configuration: dict[str, Any]
    dataset: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, name: str) -> Plans:
        """Configuration of a name in a results folder, with what it inherits.

        Raises `BadInput` for missing files, and for regions, cascades, old plans and parts that are not nnU-Net's own.
        """
        path = folder / "plans.json"
        plans, dataset = json_object(path), json_object(folder / "dataset.json")
        found = cls(path, name, plans, _resolved(path, plans.get("configurations", {}), name), dataset)
        found._refuse()
        return found

    def _refuse(self) -> None:
        labels = self.dataset.get("labels", {})
        if self.dataset.get("regions_class_order") or any(isinstance(value, list) for value in labels.values()):
            raise self._refusal("regions, which overlap", "use a model that was trained on labels without regions")
        if self.configuration.get("previous_stage"):
            raise self._refusal(
                "a stage of a cascade, whose input is another prediction", "use the folder of 3d_fullres or 3d_lowres"
            )
        if "architecture" not in self.configuration:
            raise self._refusal(
                "plans of an old form, without `architecture`",
                "plan again with nnU-Net 2.5 or later, whose plans hold `architecture`, and put its plans.json here",
            )
        for key, known in (
            ("image_reader_writer", tuple(_READERS)),
            ("label_manager", ("LabelManager",)),
            ("preprocessor_name", ("DefaultPreprocessor",)),
            ("resampling_fn_data", (_RESAMPLING,)),
            ("resampling_fn_probabilities", (_RESAMPLING,)),
        ):
            if (found := self.value(key)) not in known:
                raise self._refusal(f"{key}: {found}", f"use a model with {' or '.join(known)}")
        for key, order in (("resampling_fn_data", 3), ("resampling_fn_probabilities", 1)):
            expected = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
            if (arguments := self.value(f"{key}_kwargs")) != expected:
                raise self._refusal(f"{key}_kwargs: {arguments}", f"use a model with {expected}")

    def value(self, key: str) -> Any:
        """Value of a key of the configuration, or of the whole plans. Raises `BadInput` for a missing key."""
        found = self.configuration.get(key, self.plans.get(key))
        if found is None:
            raise BadInput(f"{self.path}: expected the key '{key}' of plans of nnU-Net v2, found none; plan again")
        return found

    def _refusal(self, found: str, to_do: str) -> BadInput:
        return BadInput(f"{self.path}: configuration '{self.name}': found {found}, which is not supported; {to_do}")

    # ---- axes ----------------------------------------------------------------------------------------------------

    def axes(self, dimensions: int) -> tuple[int, ...]:
        """Axis of this project for each axis of the network."""
        patch = self.value("patch_size")
        if len(patch) != dimensions:
            raise self._refusal(
                f"a network of {len(patch)}D windows, and {dimensions}D images in the data",
                "use a configuration of 3D windows for volumes, and one of 2D windows for pictures",
            )
        forward = [int(axis) for axis in self.value("transpose_forward")]
        # nnU-Net adds an axis in front of the two axes of a picture.
        lead = 3 - dimensions
        if sorted(forward) != [0, 1, 2] or forward[:lead] != list(range(lead)):
            raise self._refusal(f"transpose_forward: {forward}", "plan again")
        # Readers of NIfTI give the axes in reverse order, z first.
        reverse = _READERS[self.value("image_reader_writer")][0] == "nifti"
        read = [axis - lead for axis in forward[lead:]]
        return tuple(dimensions - 1 - axis if reverse else axis for axis in read)

    def on_our_axes(self, values: Sequence[Any], dimensions: int) -> list[Any]:
        """Values per axis of the network, in the order of the axes of this project."""
        return [values[place] for place in np.argsort(self.axes(dimensions))]

    # ---- names ---------------------------------------------------------------------------------------------------

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by value, background first, without `ignore`."""
        labels = {name: value for name, value in self.dataset["labels"].items() if name != "ignore"}
        return sorted(labels, key=lambda name: int(labels[name]))

    @property
    def channel_names(self) -> list[str]:
        """Names of the channels by number."""
        names = self.dataset.get("channel_names", self.dataset.get("modality", {}))
        return [names[number] for number in sorted(names, key=int)]

    # ---- comparison with the cases -------------------------------------------------------------------------------

    def check(self, cases: CaseStore) -> list[str]:
        """Notes on differences to nnU-Net. Raises `BadInput` for cases that are prepared otherwise than the plans say.

        Also raises `BadInput` for classes or channels with the names of the model in another order.
        """
        self.axes(len(cases.padded))
        notes = []
        for what, stated, found in (
            ("classes", self.class_names, cases.class_names),
            ("channels", self.channel_names, list(cases.info["channel_names"])),
        ):
            if sorted(stated) == sorted(found) and stated != found:
                raise BadInput(
                    f"{self.path.with_name('dataset.json')}: expected the {what} {found}, in the order of the data, "
                    f"found {stated}; bring the data to the order of the model"
                )
            if stated != found:
                notes.append(f"the {what} of the model are {stated}, those of the data are {found}: taken by number")
        files = _READERS[self.value("image_reader_writer")][0]
        if cases.info["files"] not in (files, None):
            raise BadInput(
                f"{self.path}: image_reader_writer: the model was trained on files of the family '{files}', found "
                f"'{cases.info['files']}' in the data, whose axes are in another order; give such files"
            )
        prepared = Preprocess.model_validate_json(json.dumps(cases.info["preprocess"]))
        expected = self.preprocess(cases)
        if expected != prepared.canonical:
            raise BadInput(
                f"{self.path}: the model prepares images otherwise than the cases: expected `preprocess: "
                f"{expected.model_dump_json()}`, found `preprocess: {prepared.model_dump_json()}`; set `preprocess` to "
                "the expected block, or to `plans`"
            )
        return notes

    def preprocess(self, cases: CaseStore) -> Preprocess:
        """Block `preprocess` of the plans for these cases. Raises `BadInput` as `block` does."""
        return self.block([case.original_spacing_mm for case in cases.all], len(cases.padded))

    def block(self, edges: Sequence[tuple[float, ...] | None], dimensions: int) -> Preprocess:
        """Canonical block `preprocess` of the plans for cases with these voxel edges in mm, per axis of the source.

        `spacing` is null if no edge is known and the plans have edges of 1, which nnU-Net gives to such images. It is
        stated in every other case, also if no case is resampled, because new images may have other edges. Raises
        `BadInput` for normalisations without such a block.
        """
        spacing = tuple(float(edge) for edge in self.on_our_axes(self.value("spacing"), dimensions))
        nowhere = all(edge is None for edge in edges) and all(edge == 1 for edge in spacing)
        content = {
            "normalise": self._normalise(),
            "orientation": _READERS[self.value("image_reader_writer")][1],
            "spacing": None if nowhere else spacing,
            "resample": "nnunet",
        }
        return Preprocess.model_validate_json(json.dumps(content)).canonical

    def _normalise(self) -> list[Any]:
        schemes, masked = self.value("normalization_schemes"), self.value("use_mask_for_norm")
        properties = self.plans.get("foreground_intensity_properties_per_channel", {})
        found: list[Any] = []
        for channel, (scheme, mask) in enumerate(zip(schemes, masked, strict=True)):
            match scheme:
                case "ZScoreNormalization" if mask:
                    found.append("zscore_nonzero")
                case "ZScoreNormalization":
                    found.append("zscore")
                case "CTNormalization":
                    found.append(_ct(properties[str(channel)]))
                case "RescaleTo01Normalization":
                    found.append("minmax")
                case "RGBTo01Normalization":
                    found.append("unit")
                case "NoNormalization":
                    found.append(_AS_IT_IS)
                case _:
                    raise self._refusal(f"the normalisation {scheme}", "use a model with a normalisation of nnU-Net")
        return found


def _ct(of_channel: dict[str, float]) -> dict[str, Any]:
    """Fixed range that clips to the stated percentiles, subtracts the mean and divides by the standard deviation."""
    ends = [float(of_channel[key]) for key in ("percentile_00_5", "percentile_99_5")]
    mean, deviation = float(of_channel["mean"]), max(float(of_channel["std"]), 1e-8)
    return {"range": ends, "to": [(end - mean) / deviation for end in ends], "clip": True}


def _resolved(path: Path, configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """Configuration with the keys that it inherits. Raises `BadInput` for an unknown name and for a circle."""
    parts: list[dict[str, Any]] = []
    parent: str | None = name
    while parent is not None:
        if parent not in configurations or len(parts) > len(configurations):
            raise BadInput(
                f"{path}: expected a configuration '{parent}', found {', '.join(configurations) or 'none'}, or names "
                "that inherit from each other; fetch the plans.json of the model"
            )
        parts.append(configurations[parent])
        parent = configurations[parent].get("inherits_from")
    return {key: value for part in reversed(parts) for key, value in part.items()}
