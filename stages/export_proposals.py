"""Proposals -> image files, and a sheet for the scores of a QC tool, which `tables:` reads back."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("out", type=FOLDER)
@click.option("--cases", type=FOLDER, default="data/cases", show_default=True)
@click.option("--proposals", type=FOLDER, default="data/proposals", show_default=True)
@click.option("--split", "splits", multiple=True, default=("pool", "validation"), show_default=True)
@stage
def main(out: Path, cases: Path, proposals: Path, splits: tuple[str, ...], params_file: Path) -> None:
    from pipeline.proposals.qc_files import SHEET, export_proposals
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import ProposalStore

    count = export_proposals(CaseStore(cases), ProposalStore(proposals), splits, out)
    asked = f"fill the score column of {out / SHEET} and name it under tables: in {params_file}"
    say("export-proposals", f"{count} proposals in {out}; {asked}")


if __name__ == "__main__":
    main()
