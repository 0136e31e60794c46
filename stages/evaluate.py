"""Model and test cases -> metrics per case and class (schema `EVALUATION`), their summary (JSON), and six numbers."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("name")
@click.option("--cases", type=FOLDER, required=True)
@click.option("--proposals", type=FOLDER, default="data/proposals", show_default=True)
@click.option("--model", type=FOLDER, required=True)
@click.option("--base", type=FOLDER, help="Evaluation table of the base, for paired differences.")
@click.option("--out", type=FOLDER, required=True)
@click.option("--metrics", type=FOLDER, required=True)
@stage
def main(
    name: str,
    cases: Path,
    proposals: Path,
    model: Path,
    base: Path | None,
    out: Path,
    metrics: Path,
    params_file: Path,
) -> None:
    from pipeline.evaluation.evaluate import EvaluationFiles, evaluate_model
    from pipeline.findings import evaluate_findings
    from pipeline.params import load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore

    params = load_params(params_file)
    data, files = Data(CaseStore(cases), ProposalStore(proposals)), EvaluationFiles(model, out, metrics)
    content = evaluate_model(name, data, files, base, params.evaluation, params.runtime)
    say(f"evaluate {name}", evaluate_findings, content)


if __name__ == "__main__":
    main()
