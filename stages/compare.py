"""Finished runs of several seeds -> gain of each arm over its base, over seeds and patients together."""

from pathlib import Path

import click

from stages import FOLDER, stage


@click.command(help=__doc__)
@click.argument("runs", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--arm", "arms", multiple=True, help="Student to compare. May be repeated.  [default: all of params.yaml]"
)
@click.option("--out", type=FOLDER, help="File for the table, .parquet or .csv.")
@stage
def main(runs: tuple[Path, ...], arms: tuple[str, ...], out: Path | None, params_file: Path) -> None:
    from pipeline.params import load_params
    from pipeline.report.compare import compare, printed, write_comparison

    params = load_params(params_file)
    table = compare(runs, arms or tuple(params.students), params.evaluation)
    if out is not None:
        write_comparison(table, out, params.evaluation)
    click.echo(printed(table))


if __name__ == "__main__":
    main()
