"""Panel -> pairs of one pair set (schema `PAIRS`), and the number of cases without a pair by reason (JSON)."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("name")
@click.option("--panel", type=FOLDER, required=True)
@click.option("--proposals", type=FOLDER, required=True)
@click.option("--cases", type=FOLDER, default="data/cases", show_default=True)
@click.option("--verdicts", type=FOLDER, default="raw/none", show_default=True, help="Answers of reviewers.")
@click.option("--audit", type=FOLDER, default=None, help="Folder of the audit. Its calibration gives p_correct.")
@click.option("--out", type=FOLDER, required=True)
@stage
def main(
    name: str,
    panel: Path,
    proposals: Path,
    cases: Path,
    verdicts: Path,
    audit: Path | None,
    out: Path,
    params_file: Path,
) -> None:
    from pipeline.findings import mine_findings
    from pipeline.pairs.mine import calibration_of, mine_to
    from pipeline.pairs.reviewed import Curves, curves_of, mine_reviewed_to
    from pipeline.params import entry, load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore

    params = load_params(params_file)
    pairs = entry(params.pairs, name, "pairs")
    judges, masks = params.judge_names, ProposalStore(proposals)
    if pairs.strategy.kind == "reviewed":
        curves = Curves() if audit is None else curves_of(audit, name)
        mine_reviewed_to(panel, judges, Data(CaseStore(cases), masks, verdicts), pairs, params.seed, out, curves)
    else:
        calibration = None if audit is None else calibration_of(audit, name, pairs)
        mine_to(panel, judges, masks, pairs, params.seed, out, calibration)
    say(f"mine {name}", mine_findings, out.with_suffix(".drops.json"), pairs.strategy.kind)


if __name__ == "__main__":
    main()
