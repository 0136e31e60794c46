"""params.yaml -> `dvc repro`, after a look at what DVC would only name by its place in dvc.yaml.

ARGUMENTS are those of `dvc repro`."""

import os
import sys
from pathlib import Path

import click

from stages import guarded


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@guarded
def main(arguments: tuple[str, ...]) -> None:
    from pipeline.check import check_paths
    from pipeline.params import load_params
    from pipeline.project.start import check_repository

    check_paths(load_params(Path("params.yaml")))
    check_repository(Path())
    os.execv(sys.executable, [sys.executable, "-m", "dvc", "repro", *arguments])


if __name__ == "__main__":
    main()
