"""Labelled cases -> base segmenter, ensemble members and folds (safetensors), and their training curves."""

from pathlib import Path

import click

from stages import FOLDER, stage


@click.command(help=__doc__)
@click.option("--cases", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@click.option("--history", type=FOLDER, required=True)
@stage
def main(cases: Path, out: Path, history: Path, params_file: Path) -> None:
    from pipeline.base import train_base
    from pipeline.dataset import CaseStore
    from pipeline.params import load_params

    params = load_params(params_file)
    train_base(
        CaseStore(cases), params.base, params.augmentation, params.compute, params.seed, out, history, params.execution
    )


if __name__ == "__main__":
    main()
