"""Small data sets in nnU-Net's raw layout, made from public data, for `benchmarks.nnunet`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[Any]
"""Voxels of one volume, with the axes of its NIfTI file."""
Edges = tuple[float, float, float]
Change = Callable[[Volume, Volume, int], tuple[Volume, Volume, Edges]]
"""From image, label and number of a case with voxels of 1 mm to other image, label and voxel edges in mm."""

FOLDS = 2
BOTH = 4
"""One test volume in this many holds two hippocampi side by side, so that several windows are needed."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of cases, all with labels. Test cases are in `imagesTs`, the others in `imagesTr`.

    Further cases are in no fold. They serve segpref as pool and validation cases.
    """

    train: int
    test: int
    further: int


@dataclass(frozen=True)
class Set:
    """A data set and how nnU-Net plans and trains on it."""

    number: int
    change: Change | None
    """Change of the volumes of the hippocampus. None: pictures of nuclei."""
    channel: str = "MRI"
    configuration: str = "3d_fullres"
    planner: str = "ExperimentPlanner"
    plans: str = "nnUNetPlans"
    features: int | None = 8
    """Features of the first stage, doubled with every stage. None: as planned."""
    batch: int = 2
    epochs: int = 10
    """Epochs of 25 steps."""
    adam: float = 3e-3
    """Learning rate of AdamW. nnU-Net's SGD, which finds no foreground of a hippocampus after so few steps, if 0."""
    sizes: Sizes = field(default_factory=lambda: Sizes(train=30, test=12, further=20))


def _resampled(image: Volume, label: Volume, edges: Edges) -> tuple[Volume, Volume, Edges]:
    """A case with other voxel edges: linear for the image, nearest voxel for the label."""
    from scipy.ndimage import zoom

    factors = [1 / edge for edge in edges]
    return zoom(image, factors, order=1), zoom(label, factors, order=0), edges


def as_it_is(image: Volume, label: Volume, number: int) -> tuple[Volume, Volume, Edges]:
    return image, label, (1.0, 1.0, 1.0)


def thick(image: Volume, label: Volume, number: int) -> tuple[Volume, Volume, Edges]:
    """Every fourth slice along the second axis; in each third case every fifth, and smaller voxels within slices."""
    step, edge = (5, 0.8) if number % 3 == 0 else (4, 1.0)
    if edge != 1:
        image, label, _ = _resampled(image, label, (edge, 1.0, edge))
    return image[:, ::step], label[:, ::step], (edge, float(step), edge)


def tomography(image: Volume, label: Volume, number: int) -> tuple[Volume, Volume, Edges]:
    """Intensities between the 1st and 99th percentile mapped to -100 and 300 HU; half of the cases have other edges."""
    low, high = np.percentile(image, (1, 99))
    mapped = np.round(400 * (image - low) / (high - low) - 100).astype(np.int16)
    return _resampled(mapped, label, (1.3, 0.8, 1.1)) if number % 2 else (mapped, label, (1.0, 1.0, 1.0))


def margin(image: Volume, label: Volume, number: int) -> tuple[Volume, Volume, Edges]:
    """Zeros outside of an ellipsoid that touches the sides of the volume, in a field 1.6 times as long."""
    grid = np.meshgrid(*(np.linspace(-1, 1, length) for length in image.shape), indexing="ij")
    inside = sum(axis**2 for axis in grid) <= 1.6
    widths = [(round(0.3 * length), round(0.3 * length)) for length in image.shape]
    label = np.where(inside, label, 0)
    return np.pad(np.where(inside, image + 1, 0), widths), np.pad(label, widths), (1.0, 1.0, 1.0)


def large(image: Volume, label: Volume, number: int) -> tuple[Volume, Volume, Edges]:
    """Three times as many voxels along every axis, for windows of about 128^3 voxels."""
    return _resampled(image, label, (1 / 3, 1 / 3, 1 / 3))


SETS = {
    "nuclei_2d": Set(901, None, configuration="2d", batch=4, adam=0.0, sizes=Sizes(40, 30, 80)),
    "iso": Set(902, as_it_is, features=None, epochs=6),
    "thick": Set(903, thick),
    "ct": Set(904, tomography, channel="CT"),
    "resenc": Set(905, as_it_is, planner="nnUNetPlannerResEncM", plans="nnUNetResEncUNetMPlans"),
    "margin": Set(906, margin),
    "large": Set(907, large, features=None, epochs=0, sizes=Sizes(train=4, test=1, further=2)),
}


def dataset_of(name: str) -> str:
    """Name of a data set in nnU-Net."""
    return f"Dataset{SETS[name].number}_{name}"


def make_raw(name: str, data: Path, folder: Path) -> list[dict[str, list[str]]]:
    """Write a data set in nnU-Net's raw layout, and return its folds in the form of `splits_final.json`.

    Folds divide the training cases alone. Labels of test cases are in `labelsTs`.
    """
    found = SETS[name]
    cases = _pictures(data) if found.change is None else _volumes(data)
    # Drawn, because the order of the files is that of their sources.
    order = np.random.default_rng(found.number).permutation(len(cases))
    sizes = found.sizes
    ends = np.cumsum([sizes.train, sizes.test, sizes.further])
    if ends[-1] > len(cases):
        raise ValueError(f"{data}: expected at least {ends[-1]} cases, found {len(cases)}")
    training, test, further = np.split(order[: ends[-1]], ends[:-1])
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write = _copy if found.change is None else _write(found.change)
    for place, number in enumerate([*training, *further]):
        write(cases[number], None, place, folder / "imagesTr", folder / "labelsTr")
    for place, number in enumerate(test):
        beside = cases[test[place - 1]] if place % BOTH == BOTH - 1 else None
        write(cases[number], beside, place, folder / "imagesTs", folder / "labelsTs")
    nuclei = found.change is None
    content = {
        "channel_names": {"0": "fluorescence" if nuclei else found.channel},
        "labels": {"background": 0, "nucleus": 1} if nuclei else {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": sizes.train + sizes.further,
        "file_ending": ".png" if nuclei else ".nii.gz",
        "overwrite_image_reader_writer": "NaturalImage2DIO" if nuclei else "SimpleITKIO",
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=1))
    return _folds([_name(cases[number]) for number in training])


def _folds(names: Sequence[str]) -> list[dict[str, list[str]]]:
    parts = [sorted(names[fold::FOLDS]) for fold in range(FOLDS)]
    return [{"train": sorted(set(names) - set(part)), "val": part} for part in parts]


def _pictures(data: Path) -> list[tuple[Path, Path]]:
    folder = data / "Dataset038_Nuclei"
    labels = sorted((folder / "labelsTr").glob("*.png"))
    return [(folder / "imagesTr" / f"{label.stem}_0000.png", label) for label in labels]


def _volumes(data: Path) -> list[tuple[Path, Path]]:
    folder = data / "Task04_Hippocampus"
    labels = sorted((folder / "labelsTr").glob("hippocampus_*.nii.gz"))
    return [(folder / "imagesTr" / label.name, label) for label in labels]


def _name(case: tuple[Path, Path]) -> str:
    return case[1].name.split(".")[0]


def _copy(case: tuple[Path, Path], beside: tuple[Path, Path] | None, number: int, images: Path, labels: Path) -> None:
    shutil.copy(case[0], images / case[0].name)
    shutil.copy(case[1], labels / case[1].name)


def _write(change: Change) -> Callable[..., None]:
    import nibabel

    def read(case: tuple[Path, Path]) -> list[Volume]:
        return [np.asanyarray(nibabel.load(file).dataobj) for file in case]

    def write(
        case: tuple[Path, Path], beside: tuple[Path, Path] | None, number: int, images: Path, labels: Path
    ) -> None:
        image, label = read(case)
        if beside:
            # Intensity scales differ from case to case by up to a factor of 10,000.
            image, label = _beside((image / image.mean() * 100, label), _scaled(read(beside)))
        image, label, edges = change(image, label, number)
        kind = image.dtype if image.dtype == np.int16 else np.float32
        grid = np.diag([*edges, 1.0])
        nibabel.save(nibabel.Nifti1Image(image.astype(kind), grid), images / f"{_name(case)}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label.astype(np.uint8), grid), labels / f"{_name(case)}.nii.gz")

    return write


def _scaled(case: Sequence[Volume]) -> tuple[Volume, Volume]:
    image, label = case
    return image / image.mean() * 100, label


def _beside(left: Sequence[Volume], right: Sequence[Volume]) -> list[Volume]:
    """Two cases along the first axis, cut to the smaller of both along the other axes."""
    _, *lengths = np.minimum(left[0].shape, right[0].shape)
    cut = (slice(None), *(slice(0, length) for length in lengths))
    return [np.concatenate([one[cut], other[cut]]) for one, other in zip(left, right, strict=True)]
