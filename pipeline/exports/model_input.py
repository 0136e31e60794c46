"""Input of a trained model: its description in `input.json`, and its preparation from new image files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.cases.data_checks import check_voxels
from pipeline.cases.files import image_file, picture, tiff
from pipeline.cases.prepare import case_of
from pipeline.cases.preprocess import Preprocess, one_orientation
from pipeline.cases.readers.reader import Source
from pipeline.cases.voxels import converted
from pipeline.errors import BadInput
from pipeline.exports.new_images import NewImage, headers_of
from pipeline.knobs import Knobs
from pipeline.store.cases import INPUT, Case
from pipeline.store.manifest import read_record


class ModelInput(Knobs):
    """Content of `input.json`, with the keys `store.cases.INPUT_KEYS`."""

    class_names: list[str]
    """Names of the classes, background first."""
    channel_names: list[str]
    """Names of the channels, in the order of the model's channels."""
    preprocess: Preprocess
    """Preparation of the training cases."""
    orientation: str | None
    """Orientation of volumes on the working grid; `unknown` if the files have no orientation, null for 2D images."""
    convert: Literal["grey", "rgb"] | None
    """Colour that all images are converted to before preparation; null without conversion."""
    files: Literal["nifti", "pictures"] | None
    """Kind of the files of the training cases; null for phantoms."""
    mask_values: list[int] | None = None
    """Value of each class in masks, as in those of the training cases; null for class indices."""

    @classmethod
    def load(cls, folder: Path) -> ModelInput:
        """Content of `input.json` in a model folder. Raises `BadInput` for a missing file and for invalid content."""
        path = folder / INPUT
        found = read_record(cls, path, "the description of a model's input", "run `dvc repro`")
        if found is None:
            raise BadInput(f"{path}: no such file, so the preparation of images is unknown; run `dvc repro`")
        return found

    def read(self, image: NewImage, axes: int) -> tuple[Case, np.ndarray]:
        """Case of an image, and its voxels f32 `[channel, *working]`, prepared by the code of the training cases.

        `axes`: number of spatial axes of the model. Raises `BadInput` for files, axes, channels and orientations other
        than those of the training cases.
        """
        first = image.files[0]
        where = f"{first}: case '{image.case_id}'"
        self._check_family(first, where, axes)
        headers = headers_of(image, len(self.channel_names))
        header = headers[0]
        if len(header.shape) != axes:
            raise BadInput(
                f"{where}: expected {axes} spatial axes as the model was trained on, found shape {header.shape}; give "
                "images to a 2D model and volumes to a 3D model"
            )
        spacing = header.spacing_mm
        if spacing is None and image.spacing_file is not None:
            spacing = tiff.spacing(image.spacing_file, image.case_id, axes)
        source = Source(image.case_id, header.shape, first.name, None, spacing, header.affine)
        self._check_orientation(source, where)
        parts = [image_file.image(file, image.case_id, header.shape) for file in image.files]
        voxels = np.concatenate(parts)
        if self.convert is not None and len(voxels) in (1, 3):
            voxels = converted(voxels, self.convert)
        if len(voxels) != len(self.channel_names):
            raise BadInput(
                f"{where}: expected {len(self.channel_names)} channels ({', '.join(self.channel_names)}), found "
                f"{len(voxels)} in {', '.join(file.name for file in image.files)}; give one file with all channels, or "
                f"one file per channel ({image.case_id}_0000 and on)"
            )
        check_voxels(voxels, None, source, len(self.channel_names), first.parent)
        case = case_of(0, "test", source, self.preprocess, self.preprocess.crop(voxels))
        return case, self.preprocess.image(voxels, case)

    def _check_family(self, file: Path, where: str, axes: int) -> None:
        """Refuse volumes for a model of pictures, and pictures for a model of volumes: the order of axes differs."""
        ending = image_file.ending_of(file)
        is_volume = ending in image_file.VOLUMES
        if self.files is None or is_volume == (self.files == "nifti"):
            return
        if axes == 2:
            pictures = f"2D pictures ({', '.join((*picture.ENDINGS, *tiff.ENDINGS))})"
        else:
            pictures = f"stacks of TIFF ({', '.join(tiff.ENDINGS)})"
        volumes = f"{axes}D NIfTI, NRRD or MetaImage files ({', '.join(image_file.VOLUMES)})"
        takes, found = (pictures, f"`{ending}`") if is_volume else (volumes, "a picture")
        raise BadInput(
            f"{where}: the model takes {takes} like the images that it was trained on, found {found}, whose axes are "
            "in another order; give such files, or use another model"
        )

    def _check_orientation(self, source: Source, where: str) -> None:
        """Refuse a volume whose axes point in other directions than in training, as `prepare` refuses a mixture."""
        if self.preprocess.orientation is not None or len(source.shape) != 3:
            return
        found = one_orientation([source])
        if found != self.orientation:
            raise BadInput(
                f"{where}: expected a volume of orientation {self.orientation} like those that the model was trained "
                f"on, found {found}; bring it to that orientation, or, unless the base is an nnU-Net whose "
                "plans ask for null, train with `preprocess.orientation: RAS`"
            )
