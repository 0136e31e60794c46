"""Code and params.yaml -> for each stage and entry, the code files that its results follow from, each with a hash."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--out", type=FOLDER, required=True)
@stage
def main(out: Path, params_file: Path) -> None:
    from pipeline.findings import provenance_findings
    from pipeline.params import load_params
    from pipeline.provenance import write_provenance

    files = write_provenance(load_params(params_file), out)
    say("provenance", provenance_findings, files)


if __name__ == "__main__":
    main()
