"""Validation tables and students -> the student that may replace the base, or none, and the reason (JSON)."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--validation", type=FOLDER, required=True)
@click.option("--students", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@stage
def main(validation: Path, students: Path, out: Path, params_file: Path) -> None:
    from pipeline.knobs import NOTHING
    from pipeline.params import load_params
    from pipeline.promotion.candidates import objections
    from pipeline.promotion.promote import PromotionFiles, promote

    params = load_params(params_file)
    against = objections(params.students, params.pairs, params.judges, params.consensus, params.training.optimisation)
    first_base = None if params.promotion.first_base == NOTHING else params.promotion.first_base
    files = PromotionFiles(validation, students, out, first_base)
    record = promote(against, files, params.promotion, params.evaluation.worse_by)
    say("promote", record.reason)


if __name__ == "__main__":
    main()
