"""All measurements of a run -> report, one self-contained page `index.html`, and the curves of students as a table."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--audit", type=FOLDER, default="audit", show_default=True)
@click.option("--cases", type=FOLDER, default="data/cases", show_default=True)
@click.option("--pairs", type=FOLDER, default="data/pairs", show_default=True)
@click.option("--panel", type=FOLDER, default="data/panel.parquet", show_default=True)
@click.option("--proposals", type=FOLDER, default="data/proposals", show_default=True)
@click.option("--evaluation", type=FOLDER, default="evaluation", show_default=True)
@click.option("--history", type=FOLDER, default="history", show_default=True)
@click.option("--base", type=FOLDER, default="models/base", show_default=True)
@click.option("--promoted", type=FOLDER, default="models/promoted", show_default=True)
@click.option("--students", type=FOLDER, default="models/students", show_default=True)
@click.option("--notes", type=FOLDER, default="data/notes.json", show_default=True)
@click.option("--out-of-fold", type=FOLDER, default="data/out_of_fold", show_default=True)
@click.option("--validation", type=FOLDER, default="validation", show_default=True)
@click.option("--out", type=FOLDER, required=True)
@stage
def main(cases: Path, panel: Path, proposals: Path, out: Path, params_file: Path, **folders: Path) -> None:
    from pipeline.findings import report_findings
    from pipeline.params import load_params
    from pipeline.report.curves import curve_table
    from pipeline.report.page import write_report
    from pipeline.report.run import Run
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import ProposalStore

    params = load_params(params_file)
    run = Run(params=params, cases=CaseStore(cases), panel_file=panel, proposals=ProposalStore(proposals), **folders)
    write_report(run, out)
    # `dvc plots show` draws one plot of this file.
    curve_table(run).write_csv(out / "curves.csv")
    say("report", report_findings, run, out / "index.html")


if __name__ == "__main__":
    main()
