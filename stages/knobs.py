"""Typed knobs -> a JSON schema of params.yaml for editors, and a page with the meaning of every knob."""

from pathlib import Path

import click

from stages import FOLDER, guarded


@click.command(help=__doc__)
@click.option("--schema", type=FOLDER, default="params.schema.json", show_default=True)
@click.option("--page", type=FOLDER, default="docs/knobs.md", show_default=True)
@click.option("--check", is_flag=True, help="Write nothing, and end with code 2 if a file is not current.")
@guarded
def main(schema: Path, page: Path, check: bool) -> None:
    from pipeline.reference.files import refuse_old_reference, write_reference

    if check:
        refuse_old_reference(schema, page)
    else:
        write_reference(schema, page)


if __name__ == "__main__":
    main()
