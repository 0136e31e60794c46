"""Results folders of nnU-Net, made by its own commands, and the masks of segpref against those of `nnUNetv2_predict`.

    python -m benchmarks.nnunet make --data ../shared/data --out nnreal --nnunet NNUNET/bin
    python -m benchmarks.nnunet compare --out nnreal --nnunet NNUNET/bin

`make` writes a small data set, and has nnU-Net plan, preprocess and train two folds for 150 to 250 steps. NNUNET is a
virtual environment of its own with nnU-Net 2.8.1, and gets a trainer with short epochs as a further file. All commands
go on where they were stopped. `compare` predicts the test cases with fold 0, once with mirroring and once without, and
counts voxels that differ. nnU-Net adds logits in half precision. So its predictions are made a second time with sums in
single precision, which shows the share of half precision. The table is written to `NAME/compared.csv`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from numpy.typing import NDArray
from ruamel.yaml import YAML

from benchmarks.nnunet_sets import FOLDS, SETS, dataset_of, make_raw
from benchmarks.stage import stage

TRAINER = "nnUNetTrainerShort"
TRAINER_CODE = f'''"""nnU-Net's trainer with few short epochs, on one core."""
import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

# nnU-Net's commands start as many threads as there are cores, and then import this file.
torch.set_num_threads(1)


class {TRAINER}(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ.get("EPOCHS", 10))
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 25, 2

    def configure_optimizers(self):
        """AdamW with the rate `ADAM`, or nnU-Net's SGD if the rate is 0."""
        if not (rate := float(os.environ.get("ADAM", 0))):
            return super().configure_optimizers()
        self.initial_lr = rate
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def perform_actual_validation(self, save_probabilities=False):
        """Left out, because it takes longer than such a training."""
'''


SINGLE = (
    "import torch; torch.half = torch.float32; "
    "from nnunetv2.inference.predict_from_raw_data import predict_entry_point; predict_entry_point()"
)
"""Python code for `nnUNetv2_predict` whose sums of logits and of weights are in single precision."""


class Foreign:
    """nnU-Net's commands on one data set. All files of the data set are in one folder."""

    def __init__(self, name: str, out: Path, programs: Path) -> None:
        self.name, self.made, self.programs = name, SETS[name], programs.resolve()
        self.folder = (out / name).resolve()
        self.raw = self.folder / "raw" / dataset_of(name)
        self.preprocessed = self.folder / "preprocessed" / dataset_of(name)
        trained = f"{TRAINER}__{self.made.plans}__{self.made.configuration}"
        self.results = self.folder / "results" / dataset_of(name) / trained
        self.log = self.folder / "nnunet.log"

    def run(self, command: str, *arguments: str) -> None:
        """Run a program of nnU-Net's environment. What it prints is appended to `nnunet.log`."""
        here = {f"nnUNet_{what}": str(self.folder / what) for what in ("raw", "preprocessed", "results")}
        environment = {
            **os.environ,
            **here,
            # Its planner takes this as a number of threads.
            "nnUNet_n_proc_DA": "0" if command == "nnUNetv2_train" else "1",
            "nnUNet_def_n_proc": "1",
            "EPOCHS": str(self.made.epochs),
            "ADAM": str(self.made.adam),
            "OMP_NUM_THREADS": "1",
        }
        line = [str(self.programs / command), *arguments]
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(line)}\n")
            log.flush()
            subprocess.run(line, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)

    def add_trainer(self) -> None:
        """Put the short trainer beside nnU-Net's own.

        A trainer in a folder of its own would be looked for after all others were imported, and some of nnU-Net's
        trainers cannot be imported beside a torch for CPUs.
        """
        where = [str(self.programs / "python"), "-c", "import nnunetv2; print(nnunetv2.__path__[0])"]
        package = Path(subprocess.run(where, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
        (package / "training" / "nnUNetTrainer" / f"{TRAINER}.py").write_text(TRAINER_CODE)

    def plan(self) -> None:
        """Plan, change features and batch in the plans, and preprocess."""
        made, number = self.made, str(self.made.number)
        self.run("nnUNetv2_plan_and_preprocess", "-d", number, "-pl", made.planner, "--no_pp", "-npfp", "1")
        file = self.preprocessed / f"{made.plans}.json"
        shutil.copy(file, file.with_suffix(".as_planned"))
        file.write_text(json.dumps(self._smaller(json.loads(file.read_text())), indent=4))
        preprocess = ("-plans_name", made.plans, "-c", made.configuration, "-np", "1")
        self.run("nnUNetv2_preprocess", "-d", number, *preprocess)

    def _smaller(self, plans: dict[str, Any]) -> dict[str, Any]:
        found = plans["configurations"][self.made.configuration]
        found["batch_size"] = self.made.batch
        arguments = found["architecture"]["arch_kwargs"]
        if first := self.made.features:
            planned = arguments["features_per_stage"]
            arguments["features_per_stage"] = [features * first // planned[0] for features in planned]
        return plans

    def train(self, folds: list[dict[str, list[str]]]) -> None:
        splits = json.dumps(folds, indent=1)
        # nnU-Net reads the first file, and segpref the second.
        (self.preprocessed / "splits_final.json").write_text(splits)
        (self.raw / "splits_final.json").write_text(splits)
        for fold in range(FOLDS):
            if not (self.results / f"fold_{fold}" / "checkpoint_final.pth").exists():
                what = (str(self.made.number), self.made.configuration, str(fold))
                self.run("nnUNetv2_train", *what, "-p", self.made.plans, "-tr", TRAINER, "-device", "cpu")
        (self.results / "splits_final.json").write_text(splits)

    def predict(self, images: Path, out: Path, mirror: bool, single: bool) -> None:
        """Masks by fold 0. `single`: logits of windows are added in single precision."""
        if (out / "done").exists():
            return
        made = self.made
        which = ["-d", str(made.number), "-c", made.configuration, "-p", made.plans, "-tr", TRAINER, "-f", "0"]
        how = ["-device", "cpu", "-npp", "1", "-nps", "1", *([] if mirror else ["--disable_tta"])]
        program = ["python", "-c", SINGLE] if single else ["nnUNetv2_predict"]
        self.run(*program, "-i", str(images), "-o", str(out), *which, *how)
        (out / "done").touch()


def parameters(raw: Path, results: Path, mirror: bool) -> dict[str, Any]:
    """Knobs of a project for a data set and a results folder of nnU-Net.

    Training and validation cases are those of fold 0, and all further cases are the pool.
    """
    return {
        "seed": 0,
        "data": {"kind": "nnunet", "path": str(raw), "labels_ts": "test"},
        "preprocess": "plans",
        "splits": {
            "labelled": 0,
            "pool": "rest",
            "validation": 0,
            "test": 0,
            "given": {"file": "splits_final.json", "fold": 0, "train": "labelled", "val": "validation"},
        },
        "augmentation": {"flips": []},
        "model": str(results),
        "base": {"kind": "nnunet", "folds": [0], "base_fold": 0, "mirror": mirror},
        "propose": {
            "imports": "raw/none",
            "samplers": {"thresholds": {"kind": "threshold", "thresholds": [0.3, 0.7]}},
        },
        "judges": {"agreement": {"kind": "agreement"}},
        "tables": {},
        "consensus": {},
        "audit": {},
        "pairs": {
            "none": {"judge": "none", "strategy": {"kind": "none"}},
            "agreement": {"judge": "agreement", "strategy": {"kind": "top_bottom", "min_p_correct": 0.0}},
        },
        "training": {
            "optimisation": {"steps": 1, "learning_rate": 1e-4, "evaluate_every": 1},
            "images": 1,
            "labelled": 1,
        },
        "students": {
            "supervised": {"pairs": "none", "objective": {"kind": "supervised"}},
            "preference": {"pairs": "agreement", "objective": {"kind": "preference"}, "anchor": {"supervised": 0.0}},
        },
        "evaluation": {"nsd_tolerance": 1.0},
        "promotion": {"first_base": "raw/none"},
        "compute": {"device": "cpu", "threads": 1, "precision": "float32"},
        "execution": {"scheduler": "synchronous", "workers": 1, "progress": "none"},
    }


@click.group(help=__doc__)
def main() -> None:
    pass


_sets = click.option("--set", "names", type=click.Choice(list(SETS)), multiple=True, default=list(SETS))
_out = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for all files.")
_programs = click.option(
    "--nnunet", "programs", type=click.Path(path_type=Path, exists=True), required=True, help="Its folder of programs."
)


@main.command()
@_sets
@_out
@_programs
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the public data.")
def make(names: tuple[str, ...], out: Path, programs: Path, data: Path) -> None:
    """Make data sets, and results folders of nnU-Net for them."""
    for name in names:
        foreign = Foreign(name, out, programs)
        # Written last.
        if (foreign.results / "splits_final.json").exists():
            continue
        foreign.add_trainer()
        folds = make_raw(name, data, foreign.raw)
        if not (foreign.preprocessed / foreign.made.plans).with_suffix(".as_planned").exists():
            foreign.plan()
        foreign.train(folds)
        click.echo(f"{name}: {foreign.results}")


@main.command()
@_sets
@_out
@_programs
def compare(names: tuple[str, ...], out: Path, programs: Path) -> None:
    """Predict the test cases with segpref and nnU-Net, and count voxels that differ."""
    for name in names:
        if not SETS[name].epochs:
            continue
        foreign = Foreign(name, out, programs)
        images = _test_images(foreign)
        rows = []
        for mirror in (False, True):
            folder = foreign.folder / "compared" / ("mirror" if mirror else "plain")
            for precision in ("half", "single"):
                foreign.predict(images, folder / precision, mirror, precision == "single")
            window, spacing = _segpref(foreign, folder / "segpref", images, mirror)
            for truth in sorted((foreign.raw / "labelsTs").iterdir()):
                windows = _windows(images / truth.name.replace(".", "_0000.", 1), window, spacing)
                rows.append({"set": name, "mirror": mirror, "windows": windows, **_row(truth, folder)})
        table = pl.DataFrame(rows)
        table.write_csv(foreign.folder / "compared.csv")
        for line in _lines(table):
            click.echo(line)


def _test_images(foreign: Foreign) -> Path:
    """Folder with the images of the test cases alone."""
    folder = foreign.folder / "compared" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for label in (foreign.raw / "labelsTs").iterdir():
        name = label.name.replace(".", "_0000.", 1)
        shutil.copy(foreign.raw / "imagesTs" / name, folder / name)
    return folder


def _segpref(foreign: Foreign, folder: Path, images: Path, mirror: bool) -> tuple[list[int], list[float] | None]:
    """Masks of the base in `folder/masks`, as a user gets them. Returns the window and the spacing of the plans."""
    before = Path.cwd()
    imported_project(foreign.raw, foreign.results, folder, mirror)
    spacing = json.loads(Path("data/cases/cases.json").read_text())["preprocess"]["spacing"]
    stage("predict", "masks/done", "models/base", str(images), "masks", "--workers=1", "--scheduler=synchronous")
    Path("masks/done").touch()
    window = json.loads(Path("models/base/network.json").read_text())["window"]
    os.chdir(before)
    return window, spacing


def imported_project(raw: Path, results: Path, folder: Path, mirror: bool) -> dict[str, Any]:
    """Project in a folder, which becomes the current folder, with its cases and its base. Returns its knobs."""
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    Path("raw/none").touch()
    params = parameters(raw, results, mirror)
    write_params(params)
    stage("prepare", "data/cases/manifest.json", "--out=data/cases")
    base = ("--cases=data/cases", "--out=models/base", "--history=history/base.csv")
    stage("base", "models/base/manifest.json", *base)
    return params


def write_params(params: dict[str, Any]) -> None:
    with Path("params.yaml").open("w") as file:
        YAML().dump(params, file)


def _read(file: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels and their edges; edges of pictures are 1."""
    import nibabel
    from PIL import Image

    if file.suffix == ".png":
        picture = np.asarray(Image.open(file))
        return picture, np.ones(picture.ndim)
    volume = nibabel.load(file)
    return np.asarray(volume.dataobj), np.asarray(volume.header.get_zooms(), dtype=np.float64)


def _windows(image: Path, window: list[int], spacing: list[float] | None) -> int:
    """Number of windows of a case, after the crop to non-zero voxels and the resampling of nnU-Net."""
    from pipeline.segmenter.planned import even_starts

    voxels, edges = _read(image)
    inside = [np.ptp(places) + 1 for places in np.nonzero(voxels)]
    factors = edges / spacing if spacing else np.ones(len(inside))
    lengths = [round(length * factor) for length, factor in zip(inside, factors, strict=True)]
    return prod(len(even_starts(have, want)) for have, want in zip(lengths, window, strict=True))


def _row(truth: Path, folder: Path) -> dict[str, Any]:
    """Voxels of a case that differ from nnU-Net, and the Dice of both to the truth."""
    from pipeline.measures.overlap import dice_to

    wanted, _ = _read(truth)
    ours, half, single = (_read(folder / part / truth.name)[0] for part in ("segpref/masks", "half", "single"))
    dices = dice_to(wanted, np.stack([ours, half]), int(wanted.max()) + 1)
    return {
        "case": truth.name.split(".")[0],
        "voxels": wanted.size,
        "differ": int((ours != half).sum()),
        "differ_single": int((ours != single).sum()),
        "dice": dices[0],
        "dice_nnunet": dices[1],
    }


def _lines(table: pl.DataFrame) -> Iterator[str]:
    """Lines of the table of `docs/results/nnunet.md`: sums over the cases of one window, and over those of several."""
    kinds = pl.when(pl.col("windows") == 1).then(pl.lit("one")).otherwise(pl.lit("several")).alias("kind")
    counts = table.group_by("set", "mirror", kinds).agg(
        pl.len().alias("cases"),
        pl.col("voxels", "differ", "differ_single").sum(),
        (pl.col("differ") / pl.col("voxels")).max().alias("worst"),
        pl.col("dice", "dice_nnunet").mean(),
    )
    for row in counts.sort("set", "mirror", "kind").iter_rows(named=True):
        cells = [
            row["set"],
            "yes" if row["mirror"] else "no",
            row["kind"],
            row["cases"],
            f"{row['voxels']:,}",
            row["differ"],
            f"{1e4 * row['differ'] / row['voxels']:.2f}",
            f"{1e4 * row['worst']:.2f}",
            row["differ_single"],
            f"{100 * row['dice']:.2f}",
            f"{100 * row['dice_nnunet']:.2f}",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
