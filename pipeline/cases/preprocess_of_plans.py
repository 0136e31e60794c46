"""`preprocess: plans`: the block `preprocess` that the plans of an nnU-Net ask for, without reading its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cases.files.checks import json_object
from pipeline.cases.nnunet_plans import Plans
from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.store.manifest import sha256

if TYPE_CHECKING:
    from pipeline.cases.preprocess import Preprocess
    from pipeline.cases.readers.reader import Source

_NAME = "TRAINER__PLANS__CONFIGURATION"
_BLOCK = "or write a block in place of `preprocess: plans`"


class PreprocessOfPlans(Knobs):
    """Preprocessing of one configuration of `plans.json` in a results folder of nnU-Net."""

    model: Path
    """Results folder `TRAINER__PLANS__CONFIGURATION`."""

    @property
    def configuration(self) -> str | None:
        """Name of the configuration: the end of the folder's name, or the only configuration of the plans. Else None.

        The checkpoints state the name too, but reading a checkpoint needs torch.
        """
        named, names = self.model.name.rpartition("__")[2], self._configurations()
        return named if named in names else names[0] if len(names) == 1 else None

    @property
    def stamp(self) -> str:
        """Name of the configuration and SHA-256 of the plans, from which the block follows.

        Raises `BadInput` for a folder without plans, without a configuration, or with several of which none is named.
        """
        return f"{self._named()} {sha256(self._file)}"

    def for_sources(self, sources: Sequence[Source]) -> Preprocess:
        """The block for these cases, of which there is at least one.

        Raises `BadInput` as `stamp` does, and for plans that are not supported or do not fit the cases.
        """
        plans = Plans.of(self.model, self._named())
        return plans.block([source.spacing_mm for source in sources], len(sources[0].shape))

    @property
    def _file(self) -> Path:
        return self.model / "plans.json"

    def _configurations(self) -> list[str]:
        found = json_object(self._file).get("configurations")
        return list(found) if isinstance(found, dict) else []

    def _named(self) -> str:
        if not self._file.is_file():
            inner = sorted(path.parent.name for path in self.model.glob(f"*/{self._file.name}"))
            found = f"the folder of {', '.join(inner)}" if inner else "no such file"
            raise BadInput(
                f"{self._file}: `preprocess: plans` expected the plans of nnU-Net, found {found}; set `model` to the "
                f"results folder {_NAME}, {_BLOCK}"
            )
        if (name := self.configuration) is None:
            raise BadInput(
                f"{self._file}: `preprocess: plans` expected one configuration, or a folder {_NAME} that names one of "
                f"several, found the configurations {', '.join(self._configurations()) or 'none'} in the folder "
                f"'{self.model.name}'; give the folder the name that nnU-Net gave it, {_BLOCK}"
            )
        return name
