"""Pair set -> data set of its own: Parquet shards with image, chosen and rejected mask, and a data set card."""

from pathlib import Path

import click

from stages import FOLDER, say, stage


@click.command(help=__doc__)
@click.argument("name")
@click.option("--license", "licence", help="Licence of the images and masks, such as cc-by-4.0. Required.")
@click.option("--cases", type=FOLDER, default="data/cases", show_default=True)
@click.option("--proposals", type=FOLDER, default="data/proposals", show_default=True)
@click.option("--pairs", type=FOLDER, default="data/pairs", show_default=True)
@click.option("--audit", type=FOLDER, default="audit", show_default=True)
@click.option("--out", type=FOLDER, help="New folder.  [default: exports/NAME_pairs]")
@stage
def main(name: str, licence: str | None, proposals: Path, out: Path | None, params_file: Path, **run: Path) -> None:
    from pipeline.exports.card import FinishedRun
    from pipeline.exports.pair_set import export_pair_set
    from pipeline.params import load_params
    from pipeline.store.proposals import ProposalStore

    out = out or Path("exports") / f"{name}_pairs"
    finished = FinishedRun(load_params(params_file), **run)
    pairs, shards = export_pair_set(name, finished, ProposalStore(proposals), licence, out)
    say(
        "export-pairs",
        f"{pairs} pairs in {shards} shard{'s' * (shards > 1)} in {out}; case_id and group are those of the source, so "
        f"read {out / 'README.md'} and look at a row before you share the folder",
    )


if __name__ == "__main__":
    main()
