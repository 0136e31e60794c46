"""Base or student -> folder with weights, program, MONAI bundle or nnU-Net's results folder, and a model card.

NAME is `base`, a student of params.yaml, or `promoted`. The format nnunet takes several names, one for each fold."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--format", "form", type=click.Choice(["safetensors", "program", "bundle", "nnunet"]), required=True)
@click.option(
    "--model", type=FOLDER, help="Folder of the model.  [default: models/base, models/promoted or models/students/NAME]"
)
@click.option("--weights", help="Name of the weights.  [default: last of a student, base of a base]")
@click.option("--cases", type=FOLDER, default="data/cases", show_default=True)
@click.option("--pairs", type=FOLDER, default="data/pairs", show_default=True)
@click.option("--audit", type=FOLDER, default="audit", show_default=True)
@click.option("--evaluation", type=FOLDER, default="evaluation", show_default=True)
@click.option(
    "--base", type=FOLDER, default="models/base", show_default=True, help="Base of the run, for the model card."
)
@click.option("--history", type=FOLDER, default="history", show_default=True)
@click.option("--license", "licence", help="Licence of the model for its card, such as cc-by-4.0.")
@click.option("--out", type=FOLDER, help="New folder.  [default: exports/NAME_FORMAT]")
@stage
def main(
    names: tuple[str, ...],
    form: str,
    model: Path | None,
    weights: str | None,
    licence: str | None,
    out: Path | None,
    params_file: Path,
    **run: Path,
):
    from typing import cast

    from pipeline.exports.card import FinishedRun
    from pipeline.exports.export import Format, export_models, models_of
    from pipeline.params import load_params

    params = load_params(params_file)
    found = models_of(names, params, model, weights)
    out = out or Path("exports") / f"{'-'.join(names)}_{form}"
    card = export_models(found, FinishedRun(params, **run), cast(Format, form), out, licence)
    say("export", f"{form} of {', '.join(found)} in {out}; read {card} before you share it")


if __name__ == "__main__":
    main()
