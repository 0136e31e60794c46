"""Cases and knobs -> a mark that the run can be done, and notes; or an error with everything that cannot be done."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--cases", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True, help="Empty file, on which the training of the base waits.")
@click.option("--notes", type=FOLDER, required=True, help="JSON list of what the run can do only in part.")
@stage
def main(cases: Path, out: Path, notes: Path, params_file: Path) -> None:
    from pipeline.check import check
    from pipeline.findings import check_findings
    from pipeline.params import load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.manifest import write_json

    found = check(load_params(params_file), CaseStore(cases))
    write_json(notes, found)
    # Notes change with the knobs and the mark does not, so the base is not trained anew.
    out.write_text("The run can be done.\n")
    say("check", check_findings, found)


if __name__ == "__main__":
    main()
