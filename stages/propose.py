"""Cases, base segmenter and imported masks -> several proposals per case (schema `PROPOSALS`) and their arrays.

Labelled cases get out-of-fold proposals too, if the base has folds."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.option("--cases", type=FOLDER, required=True)
@click.option("--base", type=FOLDER, required=True)
@click.option("--out", type=FOLDER, required=True)
@click.option(
    "--out-of-fold",
    type=FOLDER,
    default="data/out_of_fold",
    show_default=True,
    help="Folder of the out-of-fold proposals of labelled cases.",
)
@stage
def main(cases: Path, base: Path, out: Path, out_of_fold: Path, params_file: Path) -> None:
    from pipeline.findings import propose_findings
    from pipeline.params import load_params
    from pipeline.proposals.propose import propose, propose_out_of_fold
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import ProposalStore

    params = load_params(params_file)
    store, runtime, swap_labels = CaseStore(cases), params.runtime, params.augmentation.swap_labels
    fitted = propose_out_of_fold(store, base, params.propose, out_of_fold, runtime, swap_labels)
    propose(store, base, params.propose, out, runtime, swap_labels, fitted)
    say("propose", propose_findings, ProposalStore(out), ProposalStore(out_of_fold))


if __name__ == "__main__":
    main()
