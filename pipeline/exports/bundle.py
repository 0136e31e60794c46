"""A MONAI bundle of a trained model. MONAI's own runner makes the masks of `segpref predict` from the bundle."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__
from pipeline.cases import voxels
from pipeline.cases.files import mask_file
from pipeline.errors import BadInput
from pipeline.exports import bundle_script
from pipeline.exports.predict import ReadyModel
from pipeline.store.manifest import write_json

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_NEEDED = ("nibabel", "pillow", "scikit-image", "scipy")
_LICENCE = """The files in scripts/ are part of segpref and licensed under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0).

The weights in models/ were trained on data that this bundle does not hold. The licence of the weights must be stated by
those who trained them and who may share results of that data.
"""


def write_bundle(found: ReadyModel, out: Path, name: str, card: str) -> None:
    """Write `configs`, `models/model.pt` (a plain `state_dict`), `scripts`, `docs/README.md` and `LICENSE`.

    Raises `BadInput` for a model that MONAI cannot run with the same result: a program, a model of TIFF stacks, or a
    network that MONAI's class alone does not rebuild.
    """
    architecture = found.model.architecture
    if architecture.program:
        raise BadInput(
            f"{found.model.weights}: expected a network of MONAI for a bundle, found a program; share the file itself"
        )
    if architecture.planned:
        raise BadInput(
            f"{found.model.folder}: expected a network of MONAI for a bundle, found {architecture.name}, whose "
            "inference is not MONAI's; export as safetensors"
        )
    if found.input.preprocess.resample != "linear":
        raise BadInput(
            f"{found.model.folder}: expected preprocess.resample 'linear' for a bundle, found "
            f"'{found.input.preprocess.resample}'; export as safetensors"
        )
    if found.input.files == "pictures" and architecture.dimensions == 3:
        raise BadInput(
            f"{found.model.folder}: the model was trained on stacks of TIFF, which bundles do not read; convert the "
            "data to NIfTI and train again, or export as safetensors"
        )
    network = found.model.load().cpu()
    arguments = {size: value for size, value, _ in architecture.sizes()} | architecture.arguments
    _same_logits(found, network, arguments)
    spec = found.input.model_dump(mode="json") | {
        "dimensions": architecture.dimensions,
        "offsets": list(found.offsets),
    }
    write_json(out / "configs" / "inference.json", _inference(architecture.name, arguments, architecture.window, spec))
    write_json(out / "configs" / "metadata.json", _metadata(found, name))
    (out / "models").mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), out / "models" / "model.pt")
    _write_scripts(out / "scripts")
    (out / "docs").mkdir(exist_ok=True)
    (out / "docs" / "README.md").write_text(card)
    (out / "LICENSE").write_text(_LICENCE)


def _same_logits(found: ReadyModel, network: torch.nn.Module, arguments: dict[str, Any]) -> None:
    """Refuse a network that MONAI's class alone does not rebuild, such as a network with further heads at inference.

    Logits of one random window must be equal bit by bit.
    """
    from monai.networks import nets

    architecture = found.model.architecture
    plain = getattr(nets, architecture.name)(**arguments)
    plain.load_state_dict(network.state_dict())
    window = torch.randn((1, architecture.channels, *architecture.window), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = network.eval()(window), plain.eval()(window)
    if not isinstance(theirs, torch.Tensor) or not torch.equal(ours, theirs):
        raise BadInput(
            f"{found.model.folder}: {architecture.name} gives other logits in a bundle than here, as networks with "
            "several heads do; export as safetensors or program"
        )


def _inference(name: str, arguments: dict[str, Any], window: tuple[int, ...], spec: dict[str, Any]) -> dict[str, Any]:
    """Content of `configs/inference.json`. The keys are the names that MONAI's tools look for."""
    return {
        "imports": ["$import torch", "$import scripts.transforms as transforms"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cpu')",
        "threads": 1,
        "spec": spec,
        "network_def": {"_target_": f"monai.networks.nets.{name}", **arguments},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "scripts.transforms.ToWorkingGridd", "spec": "@spec"}],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$transforms.images_of(@dataset_dir, @spec)",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "scripts.transforms.PaddedWindow", "roi_size": list(window)},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "scripts.transforms.ToSourceGridd", "spec": "@spec"},
                {"_target_": "scripts.transforms.SaveMaskd", "output_dir": "@output_dir"},
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        # The number of threads changes the last bits of logits. `initialize` is no place for this line, because MONAI
        # finds `scripts` only after `initialize`.
        "run": ["$torch.set_num_threads(@threads)", "$@evaluator.run()"],
    }


def _metadata(found: ReadyModel, name: str) -> dict[str, Any]:
    """Content of `configs/metadata.json` by MONAI's schema.

    The key `segpref` holds `input.json` and `network.json` of the model folder.
    """
    architecture, taken = found.model.architecture, found.input
    shape = list(architecture.window)
    versions = {package: importlib.metadata.version(package) for package in (*_NEEDED, "monai", "torch", "numpy")}
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].split("+")[0],
        "numpy_version": versions["numpy"],
        # MONAI's runner needs ignite and fire. This machine need not have them, so their versions are constants.
        "required_packages_version": {package: versions[package] for package in _NEEDED}
        | {"pytorch-ignite": "0.4.11", "fire": "0.5.0"},
        "name": name,
        "task": f"Segmentation of {', '.join(taken.class_names[1:])}",
        "description": f"Segments {', '.join(taken.class_names[1:])}; exported by segpref {__version__}.",
        "authors": "see docs/README.md",
        "copyright": "see LICENSE",
        "intended_use": "Research only: no medical device. See docs/README.md.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude"
                    if taken.files == "nifti"
                    else "rgb"
                    if len(taken.channel_names) == 3
                    else "grey",
                    "num_channels": architecture.channels,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": dict(enumerate(taken.channel_names)),
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": architecture.outputs,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": dict(enumerate(taken.class_names)),
                }
            },
        },
        "segpref": {"input": taken.model_dump(mode="json"), "network": asdict(architecture)},
    }


def _write_scripts(folder: Path) -> None:
    """Write copies of three files of the library. The copies import each other instead of the library."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text('"""Steps of the bundle before and after its network."""\n')
    copies = {"transforms": bundle_script, "voxels": voxels, "mask_file": mask_file}
    for name, module in copies.items():
        text = Path(str(module.__file__)).read_text()
        for other in copies:
            text = text.replace(f"from {copies[other].__name__} import", f"from scripts.{other} import")
        (folder / f"{name}.py").write_text(text)
