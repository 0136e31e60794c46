"""Pairs, proposals, cases and base -> one student: weights (last, best, late steps), record and training curve."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("name")
@click.option("--cases", type=FOLDER, required=True)
@click.option("--proposals", type=FOLDER, required=True)
@click.option("--pairs", type=FOLDER, required=True)
@click.option("--base", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@click.option("--history", type=FOLDER, required=True)
@stage
def main(
    name: str, cases: Path, proposals: Path, pairs: Path, base: Path, out: Path, history: Path, params_file: Path
) -> None:
    from pipeline.findings import train_findings
    from pipeline.params import entry, load_params
    from pipeline.progress import showing
    from pipeline.segmenter.models import start_model
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore
    from pipeline.students.start import Start
    from pipeline.students.train import train_student

    params = load_params(params_file)
    student = entry(params.students, name, "students")
    start = Start(
        name,
        student,
        start_model(base, student.start),
        Data(CaseStore(cases), ProposalStore(proposals)),
        pairs,
        params.training,
        params.augmentation,
        params.compute,
        params.seed,
    )
    with showing(params.execution.progress, f"train {name}", "validation Dice"):
        train_student(start, out, history)
    say(f"train {name}", train_findings, out, history, student.start)


if __name__ == "__main__":
    main()
