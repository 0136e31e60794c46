"""Base or student -> folder with weights, program or MONAI bundle, and a model card.

NAME is `base`, a student of params.yaml, or `promoted`."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("name")
@click.option("--format", "form", type=click.Choice(["safetensors", "program", "bundle"]), required=True)
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
    name: str,
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
    from pipeline.exports.export import Format, export_model
    from pipeline.exports.predict import ready_model
    from pipeline.params import RESERVED, entry, load_params

    params = load_params(params_file)
    if name not in RESERVED:
        entry(params.students, name, "students")
    model = model or Path("models" if name in RESERVED else "models/students") / name
    out = out or Path("exports") / f"{name}_{form}"
    found = ready_model(model, weights)
    # The card of the promoted student shows the results of the student, which have its own name.
    own = found.student if name == "promoted" and found.student else name
    export_model(own, found, FinishedRun(params, **run), cast(Format, form), out, licence)
    say("export", f"{form} of {own} in {out}; read {out / 'MODEL_CARD.md'} before you share it")


if __name__ == "__main__":
    main()
