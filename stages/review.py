"""Proposals, panel -> page on which a person says which of two masks is better, and the answers (schema `VERDICTS`)."""

from pathlib import Path
from typing import Literal

import click

from stages import FOLDER, guarded, say


@click.command(help=__doc__)
@click.option("--target", help="Pair set or judge whose pairs are audited.  [default: first pair set with pairs]")
@click.option(
    "--draw",
    type=click.Choice(["audit", "doubt", "both"]),
    default="audit",
    show_default=True,
    help="Pairs of the target at random, or pairs on which judges disagree, or both in turn.",
)
@click.option("--split", type=click.Choice(["pool", "validation"]), default="pool", show_default=True)
@click.option(
    "--repeats", type=click.FloatRange(0, 0.5), default=0.1, show_default=True, help="Share of pairs shown again."
)
@click.option("--folder", type=FOLDER, default="review", show_default=True, help="Folder of journals and table.")
@click.option("--discard-stale", is_flag=True, help="Set answers aside whose masks are gone, and do as --table.")
@click.option("--table", is_flag=True, help="Write the table from the journals, and serve nothing.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True)
@click.option("--expose", is_flag=True, help="Allow a host that other machines reach. No accounts, no encryption.")
@click.option("--cases", type=FOLDER, default="data/cases", show_default=True)
@click.option("--proposals", type=FOLDER, default="data/proposals", show_default=True)
@click.option("--panel", type=FOLDER, default="data/panel.parquet", show_default=True)
@click.option("--audit", type=FOLDER, default="audit", show_default=True)
@click.option("--params", "params_file", type=FOLDER, default="params.yaml", show_default=True)
@guarded
def main(
    target: str | None,
    draw: Literal["audit", "doubt", "both"],
    split: Literal["pool", "validation"],
    repeats: float,
    folder: Path,
    discard_stale: bool,
    table: bool,
    host: str,
    port: int,
    expose: bool,
    params_file: Path,
    **run: Path,
) -> None:
    from pipeline.params import load_params
    from pipeline.review.journal import TABLE, check_masks, write_verdicts
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore
    from pipeline.store.verdicts import Slots

    data = Data(CaseStore(run["cases"]), ProposalStore(run["proposals"]))
    if aside := check_masks(folder, Slots(data.cases, data.proposals), discard_stale):
        say("review", f"{aside} answers on masks that are gone are set aside")
    # The table needs neither panel nor audit, which are gone after new proposals. A killed server may have left it old.
    count = write_verdicts(folder)
    if not (table or discard_stale):
        from pipeline.review.server import serve
        from pipeline.review.session import Review
        from pipeline.review.start import Wanted, draws_of

        params = load_params(params_file)
        draws = draws_of(params, run["panel"], data, run["audit"], Wanted(target, draw, split, repeats))
        count = serve(Review(data, draws, folder), host, port, expose, lambda text: say("review", text))
        if Path(params.review.verdicts) != folder / TABLE:
            say("review", f"to use the answers, set `review: {{verdicts: {folder / TABLE}}}` in {params_file}")
    say("review", f"{count} verdict{'s' * (count != 1)} in {folder / TABLE}")


if __name__ == "__main__":
    main()
