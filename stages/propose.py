"""Base segmenter, images and imported masks -> several masks per case (schema `PROPOSALS`) and their arrays."""

from pathlib import Path

import click

from stages import FOLDER, stage


@click.command(help=__doc__)
@click.option("--cases", type=FOLDER, required=True)
@click.option("--base", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@stage
def main(cases: Path, base: Path, out: Path, params_file: Path) -> None:
    from pipeline.dataset import CaseStore
    from pipeline.params import load_params
    from pipeline.proposals import propose

    params = load_params(params_file)
    swap_labels = params.augmentation.swap_labels
    propose(CaseStore(cases), base, params.propose, params.compute, params.seed, out, params.execution, swap_labels)


if __name__ == "__main__":
    main()
