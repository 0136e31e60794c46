"""Panel -> reliability of judges and pair sets (schemas `AUDIT_JUDGES`, `AUDIT_PAIRS`, `CALIBRATION` and others)."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--cases", type=FOLDER, required=True)
@click.option("--proposals", type=FOLDER, required=True)
@click.option("--panel", type=FOLDER, required=True)
@click.option("--verdicts", type=FOLDER, default="raw/none", show_default=True, help="Answers of reviewers.")
@click.option("--out", type=FOLDER, required=True)
@stage
def main(cases: Path, proposals: Path, panel: Path, verdicts: Path, out: Path, params_file: Path) -> None:
    from pipeline.audit.audit import run_audit
    from pipeline.findings import audit_findings
    from pipeline.judges.consensus import reads_truth
    from pipeline.params import load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore

    params = load_params(params_file)
    run_audit(
        panel,
        {name: reads_truth(name, params.judges, params.consensus) for name in params.judge_names},
        params.pairs,
        Data(CaseStore(cases), ProposalStore(proposals), verdicts),
        params.audit,
        params.seed,
        out,
    )
    say("audit", audit_findings, out)


if __name__ == "__main__":
    main()
