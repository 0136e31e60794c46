"""What a data set holds: layout, classes, masks, grids and patients, and the knobs that follow."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.cases.files import image_file, picture
from pipeline.cases.files.checks import case_id_of, json_object, whole_numbers
from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.nnunet import NnUNet
from pipeline.cases.readers.reader import Reader, Source
from pipeline.errors import BadInput
from pipeline.segmenter.strong_views import Modality
from pipeline.store.tables import ROW, read_foreign_table

_MASKS = re.compile(r"mask|label|seg|annot|ground|truth|gt", re.IGNORECASE)
"""Words in the names of folders of masks."""
_READ = 100
"""Masks that are read, and images whose colours are compared: enough to see what a data set holds, in seconds."""
_SHADES = 32
"""Values from here on are shades of grey in pictures, and below they are class indices."""
_CLASSES = 254
"""Highest class index: 255 is unknown."""
_PATIENTS = re.compile(r"patient|subject|person|group|exam", re.IGNORECASE)
"""Words in the names of columns of patients."""
_PATIENT = re.compile(r"(?P<patient>.*?\d+)[_-].*")
"""A name that begins with what may be a patient: everything up to its first number."""
_LARGEST = 256
"""Voxels along an axis of a picture above which the working grid is made smaller, so that a CPU is enough."""


@dataclass
class Look:
    """Blocks of `params.yaml` that fit a data set, and what was found and guessed."""

    data: dict[str, Any]
    """The block `data`."""
    sources: list[Source]
    classes: list[str]
    channels: list[str]
    empty: int = 0
    """Masks without foreground among those that were read."""
    read: int = 0
    """Masks that were read."""
    values: str = ""
    """What masks hold, for pictures."""
    guessed: list[str] = field(default_factory=list)
    """What was guessed, one line each: for a user to check."""
    mirrored: list[int] | None = None
    """Axes that the training of the user's own model mirrors. None without such a model."""
    trained: list[str] = field(default_factory=list)
    """Ids of the cases that a table keeps labelled: those of the training of the user's own model, which cannot be
    measured, and cases from which judges learn."""

    @property
    def dimensions(self) -> int:
        """Spatial axes: 2 or 3."""
        return len(self.sources[0].shape)

    @property
    def volumes(self) -> bool:
        """Whether images are NIfTI, NRRD or MetaImage, whose first axis is left and right."""
        return image_file.is_volume(self.sources[0].image)

    @property
    def labelled(self) -> list[Source]:
        """Cases with a mask."""
        return [source for source in self.sources if source.label is not None]

    @property
    def modality(self) -> Modality | None:
        """Modality of the strong views, guessed from channels and files. None if nothing speaks for one."""
        names = " ".join(self.channels).lower()
        if re.search(r"\bct\b", names):
            return "ct"
        volumes = self.volumes or self.data["kind"] != "folders"
        if re.search(r"mr|t1|t2|flair|pd|adc|dwi", names) or (self.dimensions == 3 and volumes):
            return "mri"
        return "photograph" if len(self.channels) == 3 else None

    @property
    def sides(self) -> list[str]:
        """Names of classes that speak of left or right."""
        return [name for name in self.classes if re.search(r"(^|[^a-z])(left|right|l|r)([^a-z]|$)", name.lower())]

    @property
    def flips(self) -> list[int]:
        """Axes along which images may be flipped: none where classes have sides."""
        if self.sides:
            return []
        if self.mirrored is not None:
            return self.mirrored
        # Left and right: the first axis of volumes, the last of pictures. Photographs have no upside either.
        return [0, 1] if self.modality == "photograph" else [0] if self.volumes else [self.dimensions - 1]

    @property
    def spacing(self) -> list[float] | None:
        """Median voxel edges in mm of volumes whose voxels differ by more than a tenth. None if no grid is needed."""
        edges = [source.spacing_mm for source in self.sources if source.spacing_mm is not None]
        if self.dimensions == 2 or len(edges) < len(self.sources):
            return None
        median = np.median(np.array(edges), axis=0)
        same = all(isclose(a, b, rel_tol=0.1) for one in edges for a, b in zip(one, median, strict=True))
        return None if same else [round(float(edge), 3) for edge in median]

    @property
    def resize(self) -> list[int] | None:
        """Working grid of pictures of several or large sizes: the median size, at most 256, in steps of 16 voxels."""
        shapes = np.array([source.shape for source in self.sources])
        if self.dimensions == 3 or (len(np.unique(shapes, axis=0)) == 1 and shapes.max() <= _LARGEST):
            return None
        median = np.median(shapes, axis=0)
        scaled = median * min(1, _LARGEST / median.max())
        return [max(16, round(float(size) / 16) * 16) for size in scaled]

    @property
    def window(self) -> list[int] | None:
        """Window of networks on volumes that are larger than 96 voxels along an axis."""
        largest = np.max([source.shape for source in self.sources], axis=0)
        return [min(64, int(size)) for size in largest] if self.dimensions == 3 and largest.max() > 96 else None

    @property
    def splits(self) -> dict[str, int | str]:
        """Sizes of the splits. A pool is made of masked cases only if every case has a mask."""
        masked = len(self.labelled) - len(self.trained)
        # Fewer than 15 patients of validation promote nothing, so validation comes first where 13 others are left.
        validation = min(100, max(15, masked * 3 // 10)) if masked >= 28 else masked * 2 // 5
        without, others = len(self.sources) - len(self.labelled), masked - validation
        if self.trained:
            # All cases of the table are labelled. The others are measured, or are the pool.
            return {
                "labelled": len(self.trained),
                "pool": 0 if without else others // 2,
                "validation": validation,
                "test": "rest",
            }
        labelled, pool = (others * 2 // 3, 0) if without else (others * 3 // 10, others * 2 // 5)
        return {"labelled": labelled, "pool": pool, "validation": validation, "test": "rest"}

    def patients(self) -> tuple[int, str, str] | None:
        """Number of names before the first `_` or `-`, with two names that share one. None if all differ."""
        matches = (_PATIENT.fullmatch(source.case_id) for source in self.sources)
        names = [(match["patient"], match.string) for match in matches if match]
        if "group" in self.data.get("case_table", {}):
            return None
        counts = Counter(patient for patient, _ in names)
        if len(names) < len(self.sources) or len(counts) in (1, len(names)) or max(counts.values()) == len(names):
            return None
        common = next(patient for patient, count in counts.items() if count > 1)
        first, second = islice((name for patient, name in names if patient == common), 2)
        return len(counts), first, second


def look(path: Path) -> Look:
    """What the data set at `path` holds. Raises `BadInput` for an unknown layout and for faults of the data set."""
    if not path.is_dir():
        raise BadInput(f"{path}: expected the folder of a data set, found none; correct --data")
    index = path / "dataset.json"
    if index.is_file():
        return _indexed(path, index)
    if (path / "imagesTr").is_dir():
        raise BadInput(f"{index}: expected the dataset.json of nnU-Net beside imagesTr, found none; add the file")
    below = sorted(folder for folder in path.iterdir() if folder.is_dir())
    folders = {folder.name: files for folder in below if (files := _images_of(folder))}
    if sets := [folder.name for folder in below if (folder / "dataset.json").is_file()]:
        raise BadInput(f"{path}: expected one data set, found dataset.json in {sets}; give --data {path / sets[0]}")
    if not folders:
        raise BadInput(
            f"{path}: expected dataset.json (nnU-Net, Decathlon), or a folder of images and a folder of masks, found "
            + (f"{len(files)} images in one folder" if (files := _images_of(path)) else "neither")
            + "; put images into images/ and their masks, under the same names, into masks/"
        )
    return _folders(path, folders)


def _indexed(path: Path, index: Path) -> Look:
    content = json_object(index)
    reader: Reader
    if "channel_names" in content or "file_ending" in content:
        kind, reader = "nnunet", NnUNet(path=path)
    elif "training" in content:
        kind, reader = "decathlon", Decathlon(path=path)
    else:
        raise BadInput(
            f"{index}: expected `channel_names` (nnU-Net) or `training` (Decathlon), found {sorted(content)}; correct "
            "the file"
        )
    return _looked({"kind": kind, "path": str(path)}, reader)


def _folders(path: Path, folders: Mapping[str, Mapping[str, Path]]) -> Look:
    """Paired folders: the folder of masks has a name that says so, or fewer grey values than the other."""
    named = [name for name in folders if _MASKS.search(name)]
    images = [name for name in folders if name not in named]
    if len(images) != 1 or len(named) > 1:
        raise BadInput(
            f"{path}: expected one folder of images and one of masks, found the folders of images {list(folders)}; "
            "give --data a folder with images/ and masks/"
        )
    data: dict[str, Any] = {"kind": "folders", "path": str(path)}
    data |= {"images": images[0]} if images[0] != "images" else {}
    masks = named[0] if named else None
    data |= {"masks": masks} if masks != "masks" else {}
    stems = set(folders[images[0]])
    guessed: list[str] = []
    if masks is not None:
        if not stems & set(folders[masks]):
            one, other = next(iter(folders[images[0]].values())), next(iter(folders[masks].values()))
            raise BadInput(
                f"{path}: expected masks with the names of their images, found '{one.name}' and '{other.name}'; rename "
                "the masks"
            )
        read = dict(islice(folders[masks].items(), _READ))
        values = sorted({int(value) for stem, file in read.items() for value in _values(file, stem)})
        data |= _of_values(values, list(read.values()), guessed)
    colours = {_colour(file) for file in islice(folders[images[0]].values(), _READ)}
    if len(colours) > 1 or colours == {"grey in colour"}:
        data["channels"] = "rgb" if "colour" in colours else "grey"
        guessed.append(f"images are read as {data['channels']} (found: {', '.join(sorted(colours))})")
    found = _looked(data, Folders.model_validate_json(json.dumps(data)))
    found.guessed = [*guessed, *found.guessed]
    return found


def _of_values(values: Sequence[int], masks: Sequence[Path], guessed: list[str]) -> dict[str, Any]:
    """Knobs of the reader for the values that masks hold."""
    if 255 in values and set(values) <= {0, 255}:
        guessed.append(f"masks hold {' and '.join(map(str, values))}: pixels above 127 are foreground")
        return {"foreground_above": 127, "classes": ["background", "foreground"]}
    known = [value for value in values if value != 255]
    last = max(known, default=1)
    # Greys of a drawing are dense too, but volumes are not drawn.
    dense = image_file.is_volume(masks[0]) and last < 2 * len(known)
    if last < _SHADES or (dense and last <= _CLASSES):
        classes = ["background", *(f"class_{value}" for value in range(1, last + 1))]
        classes = ["background", "foreground"] if len(classes) <= 2 else classes
        guessed.append(
            f"masks hold the class indices {_short(values)}, called {_short(classes[1:])}: give them their names"
        )
        return {"classes": classes}
    lossy = any(file.suffix.lower() in picture.LOSSY for file in masks)
    if lossy and all(value <= _SHADES or value >= 255 - _SHADES for value in values):
        guessed.append("masks are nearly black and white, as JPEG stores them: pixels above 127 are foreground")
        return {"foreground_above": 127, "classes": ["background", "foreground"]}
    raise BadInput(
        f"{masks[0].parent}: expected class indices (0, 1, ...), or 0 and 255, found the values {_short(values)}; "
        "renumber the classes without gaps, or make the project without --data and set the block `data`: `classes` has "
        f"a name for every value from 0 to at most {_CLASSES}, and `foreground_above` makes one class of all brighter "
        "voxels"
    )


def _looked(data: dict[str, Any], reader: Reader) -> Look:
    found = Look(data, reader.scan(), reader.class_names(), reader.channel_names())
    if table := _case_table(reader.path, {case_id_of(source.case_id) for source in found.sources}, found.guessed):
        data["case_table"] = table
        found.guessed.append(f"{table['file']} names the patients, in column '{table['group']}'")
    for source in islice(found.labelled, _READ):
        _, label = reader.read(source)
        found.read += 1
        found.empty += not bool(np.any((label > 0) & (label < 255))) if label is not None else 0
    return found


def _case_table(root: Path, case_ids: set[str], guessed: list[str]) -> dict[str, Any] | None:
    """Knobs of a CSV beside the data with a column of the cases and a column whose name speaks of patients."""
    for file in sorted(root.glob("*.csv")):
        try:
            content = read_foreign_table(file, ROW)
        except BadInput as error:
            guessed.append(f"a table that cannot be read is not used: {error}")
            continue
        texts = {name: content[name].cast(pl.String).drop_nulls().to_list() for name in content.columns[1:]}
        cases = next((name for name, cells in texts.items() if {*map(case_id_of, cells)} == case_ids), None)
        patients = next((name for name in texts if _PATIENTS.search(name) and name != cases), None)
        if cases and patients:
            return {"file": file.name, "case": cases, "group": patients}
    return None


def _images_of(folder: Path) -> dict[str, Path]:
    """Images of a folder by stem, without hidden files."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return {image_file.stem_of(file): file for file in files if file.name.lower().endswith(image_file.ENDINGS)}


def _values(file: Path, stem: str) -> np.ndarray:
    """Values of a mask: class indices as stored, or grey values where the file holds no indices.

    Raises `BadInput` for values that are neither, in which the reader would find a fault only in `prepare`.
    """
    shape = image_file.header(file, stem).shape
    try:
        values = image_file.mask_values(file, stem, shape, None)
    except BadInput:  # colours, or a lossy format; a file that cannot be read is refused again
        values = np.round(image_file.mask_values(file, stem, shape, None, bright=True))
    found = np.unique(whole_numbers(values, file, stem))
    if found[0] < 0:
        raise BadInput(f"{file}: case '{stem}': expected class indices from 0, found {found[0]:g}; correct the mask")
    return found


def _colour(file: Path) -> str:
    if image_file.is_volume(file):
        return "grey"
    channels = image_file.image(file, file.stem, image_file.header(file, file.stem).shape)
    if len(channels) != 3:
        return "grey"
    return "grey in colour" if (channels == channels[0]).all() else "colour"


def _short(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
