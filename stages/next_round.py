"""Promoted student and its siblings -> a project whose base they are, with the same data, splits and seed."""

from pathlib import Path

import click

from stages import FOLDER, guarded


@click.command(help=__doc__)
@click.argument("folder", type=FOLDER)
@guarded
def main(folder: Path) -> None:
    from pipeline.exports.next_round import next_round

    made = next_round(Path(), folder)
    members = ", ".join(f"{student} as {member}" for member, student in made.members.items()) or "none"
    click.echo(f"{folder}: base {made.base}, members {members}")
    for line in made.removed:
        click.echo(f"  {line}")
    click.echo(f"Next: cd {folder} && dvc repro")


if __name__ == "__main__":
    main()
