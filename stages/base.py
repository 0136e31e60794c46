"""Labelled cases, or an imported model -> weights of base, members and folds (safetensors), and training curves."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--cases", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@click.option("--history", type=FOLDER, required=True)
@stage
def main(cases: Path, out: Path, history: Path, params_file: Path) -> None:
    from pipeline.findings import base_findings
    from pipeline.params import load_params
    from pipeline.segmenter.base import train_base
    from pipeline.segmenter.imported.importer import import_base
    from pipeline.segmenter.knobs import Base
    from pipeline.store.cases import CaseStore

    params = load_params(params_file)
    base, store = params.base, CaseStore(cases)
    if isinstance(base, Base | None):
        train_base(store, base, params.augmentation, params.runtime, out, history)
    else:
        import_base(store, base, params.model, params.augmentation, params.compute, out, history)
    say("base", base_findings, out, history)


if __name__ == "__main__":
    main()
