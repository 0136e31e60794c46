"""Proposals of all cases but test cases -> score of one judge for each proposal (schema `SCORES`)."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("name")
@click.option("--cases", type=FOLDER, required=True)
@click.option("--proposals", type=FOLDER, required=True)
@click.option(
    "--out-of-fold",
    type=FOLDER,
    default="data/out_of_fold",
    show_default=True,
    help="Proposals that learned judges train on.",
)
@click.option("--verdicts", type=FOLDER, default="raw/none", show_default=True, help="Answers that experts learn from.")
@click.option("--models", type=FOLDER, default="models/judges", show_default=True, help="Folder of the trained judges.")
@click.option("--out", type=FOLDER, required=True)
@stage
def main(
    name: str,
    cases: Path,
    proposals: Path,
    out_of_fold: Path,
    verdicts: Path,
    models: Path,
    out: Path,
    params_file: Path,
) -> None:
    from pipeline.findings import judge_findings
    from pipeline.judges.score import JudgeFiles, judge
    from pipeline.params import entry, load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore

    params = load_params(params_file)
    knobs = entry(params.scored, name, "judges, tables or experts")
    data, files = Data(CaseStore(cases), ProposalStore(proposals), verdicts), JudgeFiles(models / name, out)
    judge(name, knobs, data, ProposalStore(out_of_fold), files, params.runtime, params.augmentation.unsided)
    say(f"judge {name}", judge_findings, out)


if __name__ == "__main__":
    main()
