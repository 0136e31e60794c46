"""Base of kind `nnunet`: the results folder of a trained nnU-Net v2, with its folds as base and members."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from pipeline.cases.nnunet_plans import Plans
    from pipeline.segmenter.imported.importer import ImportedModel, ImportedNetwork
    from pipeline.store.cases import CaseStore

Fold = Annotated[int, Field(ge=0)] | Literal["all"]
_SEEN_TO_DO = (
    "put these cases into the split labelled, and measure on cases that no fold of base.folds was trained on, or list "
    "in base.folds only a fold that held them out (`val` in {0}); to use the model nevertheless, move {0} elsewhere"
)


def _member(fold: Fold) -> str:
    """Name of the member that a fold becomes."""
    return f"nnunet_fold_{fold}"


class NnUNetFolder(Knobs):
    """The results folder `TRAINER__PLANS__CONFIGURATION` of nnU-Net v2: `plans.json`, `dataset.json`, `fold_0` and on.

    A copy of `splits_final.json` in the folder says which cases each fold was trained on. A labelled case that a fold
    held out gets proposals out of fold from this fold. The network is a class of `dynamic_network_architectures` (`pip
    install 'segpref[nnunet]'`). `preprocess: plans` is the preprocessing of the plans, and a block `preprocess` is
    compared with the plans. Windows, their blending, padding and mirroring are those of nnU-Net.
    """

    kind: Literal["nnunet"]
    folds: Annotated[tuple[Fold, ...], Field(min_length=1)]
    """Folds that are read: numbers, or `all`. Folds other than `base_fold` become members with the names
    `nnunet_fold_0` and on, for the sampler `ensemble`."""
    base_fold: Fold = 0
    """Fold whose weights become the base. Students start from these weights."""
    mirror: bool = True
    """Whether inference averages logits over the mirrorings that the training allows (`nnUNetv2_predict` with its
    defaults). Mirroring over 3 axes takes 8 times as long. False: as with `--disable_tta`."""
    checkpoint: Literal["final", "best"] = "final"
    """Weights of each fold: `checkpoint_final.pth` or `checkpoint_best.pth`."""

    @model_validator(mode="after")
    def _base_is_read(self) -> NnUNetFolder:
        if len(set(self.folds)) < len(self.folds):
            raise ValueError(f"folds: expected every fold once, found {list(self.folds)}")
        if self.base_fold not in self.folds:
            raise ValueError(f"base_fold: expected one of the folds {list(self.folds)}, found {self.base_fold}")
        return self

    def read(self, model: Path, cases: CaseStore, device: str) -> ImportedModel:
        """Networks of the folds, with notes on the differences to nnU-Net.

        Raises `BadInput` for a folder, plans, labels or weights that are not supported, and for preprocessing that
        differs from the preparation of the cases.
        """
        from pipeline.segmenter.imported.importer import ImportedModel
        from pipeline.segmenter.imported.nnunet_folds import SPLITS_FILE, Folds
        from pipeline.segmenter.seen import SEEN

        content = self._content(model, self.base_fold)
        plans = self._plans(model, content)
        notes = plans.check(cases)
        base = self._network(model, self.base_fold, content, plans, cases)
        members = {
            _member(fold): self._network(model, fold, self._content(model, fold), plans, cases)
            for fold in self.folds
            if fold != self.base_fold
        }
        if (trainer := content["trainer_name"]) != "nnUNetTrainer":
            notes.append(
                f"the trainer '{trainer}' is not known here: if it builds another network than the plans state, or "
                "prepares images otherwise, predictions differ from those of nnU-Net"
            )
        folds = Folds.of(model, self.folds)
        if folds is None:
            if (model / SEEN).is_file() and (model / SPLITS_FILE).is_file():
                notes.append(
                    f"{model / SPLITS_FILE} is not read: {SEEN} beside it says what the networks of this export have "
                    "seen, and lists of nnU-Net do not, so no labelled case has proposals out of fold"
                )
            elif not (model / SEEN).is_file():
                notes.append(
                    f"{model / SPLITS_FILE}: no such file, so the cases that the folds were trained on are unknown, "
                    "measures are too good on images of the training set, and no labelled case has proposals out of "
                    f"fold; copy nnUNet_preprocessed/{plans.plans.get('dataset_name', 'DATASET')}/{SPLITS_FILE} into "
                    "the folder"
                )
            return ImportedModel(base, members, notes=tuple(notes))
        fold_of = folds.held_out(cases)
        return ImportedModel(
            base,
            members,
            notes=(*notes, *folds.notes(cases)),
            # The final weights are those of the last step, whatever `val` says.
            seen=folds.seen(cases, chosen=self.checkpoint == "best"),
            seen_to_do=_SEEN_TO_DO.format(folds.file),
            folds={
                f"fold_{fold}": "base" if fold == self.base_fold else _member(fold)
                for fold in self.folds
                if f"fold_{fold}" in fold_of.values()
            },
            fold_of=fold_of,
        )

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the members: all folds that are read but the base."""
        return tuple(_member(fold) for fold in self.folds if fold != self.base_fold)

    def held_out(self, model: Path, cases: CaseStore) -> dict[str, str]:
        """Fold of each labelled case that a fold held out, without reading weights. Empty if that is unknown."""
        from pipeline.segmenter.imported.nnunet_folds import Folds

        folds = Folds.of(model, self.folds)
        return {} if folds is None else folds.held_out(cases)

    def planned(self, model: Path) -> tuple[Plans, tuple[int, ...]]:
        """Plans of the base fold, and the axes of its network that the training mirrors.

        Raises `BadInput` as `read` does for a folder, plans and labels that are not supported.
        """
        content = self._content(model, self.base_fold)
        return self._plans(model, content), tuple(content.get("inference_allowed_mirroring_axes") or ())

    def _plans(self, model: Path, content: dict[str, Any]) -> Plans:
        from pipeline.cases.nnunet_plans import Plans

        start = _of(content, "init_args", self._file(model, self.base_fold))
        return Plans.of(model, str(start["configuration"]))

    def _file(self, model: Path, fold: Fold) -> Path:
        return model / f"fold_{fold}" / f"checkpoint_{self.checkpoint}.pth"

    def _content(self, model: Path, fold: Fold) -> dict[str, Any]:
        from pipeline.segmenter.imported.weight_file import read_torch

        file = self._file(model, fold)
        if not file.is_file():
            there = sorted(str(path.relative_to(model)) for path in model.glob("fold_*/checkpoint_*.pth"))
            raise BadInput(
                f"{file}: no such checkpoint; there are {', '.join(there) or 'none'} in {model}; correct base.folds or "
                "base.checkpoint, or name the folder TRAINER__PLANS__CONFIGURATION in `model`"
            )
        content = read_torch(file)
        for key in ("network_weights", "trainer_name"):
            _of(content, key, file)
        return content

    def _network(
        self, model: Path, fold: Fold, content: dict[str, Any], plans: Plans, cases: CaseStore
    ) -> ImportedNetwork:
        from pipeline.segmenter.imported.importer import ImportedNetwork
        from pipeline.segmenter.imported.nnunet_network import network_of
        from pipeline.segmenter.imported.nnunet_origin import Origin
        from pipeline.segmenter.imported.weight_file import state_of
        from pipeline.segmenter.weights import load_state

        file = self._file(model, fold)
        allowed = content.get("inference_allowed_mirroring_axes") or ()
        architecture = network_of(plans, cases, tuple(allowed) if self.mirror else ())
        architecture = Origin.of(plans, cases).kept(architecture)
        state, _ = state_of({"network_weights": content["network_weights"]}, file)
        where = f"{file}: trainer '{content['trainer_name']}' with the network of {plans.path}"
        return ImportedNetwork(architecture, file, load_state(architecture.build(0), state, where))


def _of(content: Any, key: str, file: Path) -> Any:
    if not (isinstance(content, dict) and key in content):
        raise BadInput(f"{file}: expected a checkpoint of nnU-Net v2, found no '{key}'; name a folder of nnU-Net v2")
    return content[key]
