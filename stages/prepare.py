"""Raw data set -> cases on the working grid, each in a split (schema `CASES`), with arrays of images and labels."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--out", type=FOLDER, required=True)
@stage
def main(out: Path, params_file: Path) -> None:
    from pipeline.cases.prepare import prepare
    from pipeline.findings import plans_findings, prepare_findings
    from pipeline.params import load_params
    from pipeline.store.cases import CaseStore

    params = load_params(params_file)
    prepare(params.data, params.preprocessing, params.splits, out, params.execution)
    say("prepare", prepare_findings, CaseStore(out))
    if params.preprocess == "plans":
        say("prepare", plans_findings, CaseStore(out))


if __name__ == "__main__":
    main()
