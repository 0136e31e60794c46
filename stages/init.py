"""Data set, or none for phantoms -> the folder of a new project: params.yaml that fits, dvc.yaml and git.

With a trained nnU-Net, the model is the base of the project."""

from pathlib import Path

import click

from stages import FOLDER, guarded


@click.command(help=__doc__)
@click.argument("folder", type=FOLDER)
@click.option("--data", type=FOLDER, help="Folder of the data set, which stays where it is.  [default: phantoms]")
@click.option("--model", type=FOLDER, help="Results folder of nnU-Net v2 for the data, which stays where it is.")
@guarded
def main(folder: Path, data: Path | None, model: Path | None) -> None:
    from pipeline.project.start import start

    for line in start(folder, data, model):
        click.echo(f"  {line}")
    click.echo(f"{folder}: look at params.yaml, then: cd {folder} && segpref run")


if __name__ == "__main__":
    main()
