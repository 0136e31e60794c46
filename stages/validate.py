"""Model and validation cases -> metrics per case and class (schema `EVALUATION`), of a student's last weights."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("name")
@click.option("--cases", type=FOLDER, required=True)
@click.option("--proposals", type=FOLDER, default="data/proposals", show_default=True)
@click.option("--model", type=FOLDER, required=True)
@click.option("--base", type=FOLDER, help="Validation table of the base, for the gain that is printed.")
@click.option("--out", type=FOLDER, required=True)
@stage
def main(name: str, cases: Path, proposals: Path, model: Path, base: Path | None, out: Path, params_file: Path) -> None:
    from pipeline.evaluation.evaluate import validate_model
    from pipeline.findings import validate_findings
    from pipeline.params import load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore

    params = load_params(params_file)
    data = Data(CaseStore(cases), ProposalStore(proposals))
    validate_model(name, data, model, out, params.evaluation, params.runtime)
    say(f"validate {name}", validate_findings, out, base, params.evaluation)


if __name__ == "__main__":
    main()
