"""Score tables -> panel: every proposal with all scores, and true Dice of validation proposals (schema `panel`)."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--cases", type=FOLDER, required=True)
@click.option("--proposals", type=FOLDER, required=True)
@click.option("--scores", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@stage
def main(cases: Path, proposals: Path, scores: Path, out: Path, params_file: Path) -> None:
    from pipeline.findings import panel_findings
    from pipeline.judges.panel import build_panel
    from pipeline.params import load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import ProposalStore

    params = load_params(params_file)
    judges = list(params.scored)
    build_panel(CaseStore(cases), ProposalStore(proposals), scores, judges, out, params.consensus)
    say("panel", panel_findings, out, len(judges), len(params.consensus))


if __name__ == "__main__":
    main()
