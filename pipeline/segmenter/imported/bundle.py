"""Base of kind `bundle`: network, weights and window of a MONAI bundle, whose processing is compared with ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from pipeline.cases.preprocess import Preprocess
from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.segmenter.knobs import Network

if TYPE_CHECKING:
    from pipeline.segmenter.architecture import Architecture
    from pipeline.segmenter.imported.bundle_config import Config
    from pipeline.segmenter.imported.importer import ImportedModel
    from pipeline.store.cases import CaseStore

_AS_IT_IS = {"range": [0.0, 1.0], "to": [0.0, 1.0], "clip": False}
"""Normalisation of a bundle that states none: intensities stay as they are."""
# Keys of a MONAI block that are no arguments of the class.
_NOT_ARGUMENTS = ("_target_", "_desc_", "_requires_", "_disabled_", "_mode_")


class Bundle(Knobs):
    """The folder of a MONAI bundle: `configs/inference.json` (or YAML) and `models/model.safetensors` or `model.pt`.

    The network is a class of `monai.networks.nets`. Known preprocessing is compared with `preprocess`. Known
    postprocessing decides the head. Resampling and blending are those of this project.
    """

    kind: Literal["bundle"]
    trust: bool = False
    """Expressions in the configuration run code. Set to true if you know where the bundle is from. Plain values, and
    references to plain values, need no trust."""
    ignore: tuple[str, ...] = ()
    """Transforms by name, or whole blocks (`preprocessing`, `postprocessing`, `inferer`), that are left out. Leaving
    them out changes the input or the output of the network."""
    network: str = "network_def"
    """Name of the network's block in the configuration."""
    weights: str | None = None
    """File of the weights, relative to the bundle's folder. Null: `models/model.safetensors` or `models/model.pt`."""
    window: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """Size of the network's input, in voxels per axis. Null: `roi_size` of the inferer, else the largest case."""
    multiple: Annotated[int, Field(gt=0)] | None = None
    """The window is rounded up to a multiple of this number. Null: as `base.network.multiple` of a trained base."""

    def read(self, model: Path, cases: CaseStore, device: str) -> ImportedModel:
        """The network with notes on the differences of processing.

        Raises `BadInput` for transforms and arguments that are not supported, for expressions that are not trusted, and
        for preprocessing that differs from the preparation of the cases.
        """
        from pipeline.segmenter.imported.bundle_config import Config
        from pipeline.segmenter.imported.bundle_steps import AFTER, BEFORE, effects
        from pipeline.segmenter.imported.importer import ImportedModel, ImportedNetwork
        from pipeline.segmenter.imported.weight_file import read_state
        from pipeline.segmenter.weights import load_state

        config = Config.of(model, self.trust)
        # The transforms of our own bundles would be refused one by one; the weights alone are enough.
        if "scripts.transforms.ToWorkingGridd" in json.dumps(config.content):
            raise BadInput(
                f"{config.path}: expected transforms of MONAI, found a bundle that this project exported; export the "
                "same model with `segpref export NAME --format safetensors`, and use base.kind 'checkpoint'"
            )
        before, seen = effects(config, "preprocessing", "image", BEFORE, cases.channels, self.ignore)
        after, given = effects(config, "postprocessing", "pred", AFTER, cases.channels, self.ignore)
        notes = _compared(config, before, cases) if "preprocessing" not in self.ignore else []
        window, said = self._window(config)
        architecture = self._architecture(config, after.get("head"), window, cases)
        window = architecture.window
        small = [case for case in cases.all if any(have < want for have, want in zip(case.shape, window, strict=True))]
        if small:
            said = [
                *said,
                f"{len(small)} of {len(cases.all)} cases are smaller than the window {list(window)} and are padded at "
                "their ends here, but on both sides or not at all in MONAI, so predictions differ; a smaller "
                "base.window avoids the difference",
            ]
        path = self._weights(model)
        state, read = read_state(path)
        network = load_state(architecture.build(0), state, str(path))
        left_out = [f"base.ignore leaves out: {', '.join(self.ignore)}"] if self.ignore else []
        notes = [*left_out, *notes, *seen, *given, *said, *read]
        return ImportedModel(ImportedNetwork(architecture, path, network), notes=tuple(notes))

    def _architecture(
        self, config: Config, head: str | None, window: tuple[int, ...] | None, cases: CaseStore
    ) -> Architecture:
        from dataclasses import replace

        from pipeline.segmenter.architecture import Architecture
        from pipeline.segmenter.imported.bundle_config import class_name

        block = config.content.get(self.network)
        if not (isinstance(block, dict) and "_target_" in block):
            raise BadInput(
                f"{config.path}: {self.network}: expected a block with the `_target_` of the network, found "
                f"{block!r:.80}; name the block in base.network"
            )
        target = config.plain(block["_target_"], f"{self.network}::_target_")
        if "." in str(target) and not str(target).startswith("monai.networks.nets."):
            raise BadInput(
                f"{config.path}: {self.network}: expected a network of monai.networks.nets, found '{target}', whose "
                "code is in the bundle; save the network with torch.jit.save, and use base.kind 'program'"
            )
        if config.plain(block.get("_mode_", "default"), f"{self.network}::_mode_") != "default":
            raise BadInput(f"{config.path}: {self.network}: expected `_mode_` default, found another; remove `_mode_`")
        stated = {
            name: config.plain(value, f"{self.network}::{name}")
            for name, value in block.items()
            if name not in _NOT_ARGUMENTS
        }
        classes = len(cases.class_names)
        # Only the class and the data are known here: the architecture serves to name the class's arguments.
        made = Architecture(class_name(target), {}, len(cases.padded), cases.channels, classes, "softmax", ())
        outputs, _, default = made.sizes()[-1]
        # Without postprocessing that says so, a single output can only be a sigmoid head.
        if head is None:
            head = "sigmoid" if stated.get(outputs, default) == 1 else "softmax"
        if head == "sigmoid" and classes != 2:
            raise BadInput(
                f"{config.path}: postprocessing: expected a softmax for the {classes} classes of the data, found a "
                "sigmoid per class; overlapping classes are not supported, so use another bundle"
            )
        for name, expected, default in replace(made, head=head).sizes():
            if (found := stated.pop(name, default)) != expected:
                raise BadInput(
                    f"{config.path}: {self.network}: expected {name}: {expected}, for this data and a {head}, found "
                    f"{found}; use a bundle for such data, or correct `data`"
                )
        knobs = Network(
            name=made.name,
            arguments=stated,
            head="sigmoid" if head == "sigmoid" else "softmax",
            window=window,
            multiple=self.multiple,
        )
        return Architecture.of(knobs, cases.channels, classes, cases.padded)

    def _window(self, config: Config) -> tuple[tuple[int, ...] | None, list[str]]:
        """Window of the network, and notes on how inference in the bundle differs from ours. None: the largest case."""
        from pipeline.segmenter.imported.bundle_config import class_name

        block = config.content.get("inferer")
        if not isinstance(block, dict) or "inferer" in self.ignore:
            return self.window, []
        name = class_name(config.plain(block.get("_target_"), "inferer::_target_"))
        if name == "SimpleInferer":
            return self.window, []
        if name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt"):
            raise BadInput(
                f"{config.path}: inferer: '{name}' is not known here; list 'inferer' under base.ignore to use "
                "base.window or, without it, whole images"
            )
        size, overlap, mode = (
            config.plain(block.get(key, default), f"inferer::{key}")
            for key, default in (("roi_size", None), ("overlap", 0.25), ("mode", "constant"))
        )
        notes = []
        if (overlap, mode) != (0.5, "gaussian"):
            notes.append(
                f"windows of larger cases overlap by half with Gaussian blending here, and by {overlap} with blending "
                f"'{mode}' in the bundle, so predictions of cases with several windows differ slightly"
            )
        return self.window or (tuple(size) if isinstance(size, list) else None), notes

    def _weights(self, model: Path) -> Path:
        if self.weights is not None:
            return model / self.weights
        files = [model / "models" / f"model.{suffix}" for suffix in ("safetensors", "pt")]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise BadInput(
                f"model: {model}: expected {files[0]} or {files[1].name}, found neither; name the file in "
                "base.weights, or use base.kind 'program' with models/model.ts"
            )
        return found


def _compared(config: Config, stated: dict[str, Any], cases: CaseStore) -> list[str]:
    """Notes for a bundle that states no preprocessing. Raises `BadInput` if cases are prepared otherwise."""
    if config.content.get("preprocessing") is None:
        return [f"{config.path.name} states no preprocessing, so whether `preprocess` fits the network is unknown"]
    if stated.pop("transposed", False) and cases.info["files"] == "pictures":
        raise BadInput(
            f"{config.path}: preprocessing: MONAI reads pictures with the width first, this project with the height "
            "first, so the network would see pictures with swapped axes; list 'LoadImage' under base.ignore if the "
            "network was trained with quarter turns and flips"
        )
    found = Preprocess.model_validate_json(json.dumps(cases.info["preprocess"]))
    # Volumes that are stored in the bundle's orientation need no knob `orientation`.
    stored = stated.get("orientation") == cases.info["orientation"]
    wanted = {"normalise": _AS_IT_IS, **stated, **({"orientation": found.orientation} if stored else {})}
    try:
        expected = Preprocess.model_validate_json(json.dumps(wanted))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BadInput(f"{config.path}: preprocessing: {json.dumps(wanted)} is not supported here: {reason}") from error
    if expected.canonical != found.canonical:
        raise BadInput(
            f"{config.path}: preprocessing: the bundle prepares images otherwise than the cases: expected `preprocess: "
            f"{expected.model_dump_json()}`, found `preprocess: {found.model_dump_json()}`; set `preprocess` to the "
            "expected block"
        )
    return []
