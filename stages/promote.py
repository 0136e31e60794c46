"""Validation tables and students -> the student that may replace the base, or none, and the reason (JSON)."""

from pathlib import Path

import click

from stages import FOLDER, stage


@click.command(help=__doc__)
@click.option("--validation", type=FOLDER, required=True)
@click.option("--students", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@click.option(
    "--first-base",
    type=FOLDER,
    help="Validation table of the first base, if the base of this run was itself promoted. A student must beat both.",
)
@stage
def main(validation: Path, students: Path, out: Path, first_base: Path | None, params_file: Path) -> None:
    from pipeline.params import load_params
    from pipeline.promotion.candidates import objections
    from pipeline.promotion.promote import PromotionFiles, promote

    params = load_params(params_file)
    against = objections(params.students, params.pairs, params.judges, params.consensus)
    files = PromotionFiles(validation, students, out, first_base)
    click.echo(promote(against, files, params.promotion, params.evaluation.worse_by).reason)


if __name__ == "__main__":
    main()
