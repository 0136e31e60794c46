"""What is left of a review whose server is killed (`kill -9`) between answers and during answers.

A reviewer answers pairs as the page does, and sends an answer again until it is confirmed. The server is killed at a
random moment and started again at the same port, with the same journal and another key. The page gets the key from its
address bar. At the end the table is compared with what was confirmed: a
confirmed answer that is missing or changed is lost, and a pair with two answers was counted twice. A row of
`review_kills.csv` is one kill.

    python -m benchmarks.review_kills --kills 50 --out review_kills
"""

from __future__ import annotations

import csv
import shutil
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import polars as pl

from pipeline.review.journal import TABLE, read_journal
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from pipeline.store.tables import read_table
from tests.fixtures.review_run import Server, write_run

REVIEWER = "ann"
GIVEN = ("left", "right", "equal", "unusable")
OTHER = {"left": "right", "right": "left"}
BETWEEN = 5
"""Answers that are confirmed before each kill."""


@dataclass(frozen=True)
class Kill:
    """A row of `review_kills.csv`."""

    kill: int
    when: str
    """`between` answers, or `during` an answer that was on its way."""
    after_ms: float
    """From the moment when the answer was sent; 0 between answers."""
    written: bool
    """Whether the answer on its way was in the journal when the server was dead."""
    torn: int
    """Bytes of a last line without an end."""


class Reviewer:
    """The page: asks for pairs and sends answers, each until it is confirmed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.confirmed: dict[str, str] = {}
        self.resent: tuple[str, str] | None = None
        self.port = "0"
        self.start()

    def start(self) -> None:
        self.server = Server(self.folder, "--target", "agreement", "--repeats", "0.1", "--port", self.port)
        self.port = self.server.origin.rpartition(":")[2]
        headers = {"x-review-key": self.server.key}
        self.page = httpx.Client(base_url=self.server.origin, headers=headers, timeout=30)
        if self.resent is not None:
            self.send(*self.resent)

    def next(self) -> str:
        """Showing of the pair on the page."""
        reply = self.page.post("/api/waiting", params={"reviewer": REVIEWER}).raise_for_status().json()
        return str(reply["waiting"][0]["showing"])

    def send(self, showing: str, given: str) -> None:
        """Send an answer. The answer is kept to be sent again unless it is confirmed."""
        self.resent = (showing, given)
        content = {"reviewer": REVIEWER, "showing": showing, "answer": given, "seconds": 1.0}
        reply = self.page.post("/api/answer", json=content).raise_for_status().json()
        if reply["recorded"] != given:
            raise AssertionError(f"showing {showing}: sent {given}, confirmed {reply['recorded']}")
        self.confirmed[showing] = given
        self.resent = None


def answers_on_disk(folder: Path) -> tuple[Counter[str], int]:
    """Number of answers to each showing in the journal, and bytes of a last line without an end."""
    path = folder / f"review/journal/{REVIEWER}.jsonl"
    history, whole = read_journal(path)
    return Counter(shown.showing for shown, _ in history.counted), path.stat().st_size - whole


def kill_during(reviewer: Reviewer, given: str, after: float) -> str:
    """Kill the server `after` seconds after an answer was sent. Return the showing of the answer."""
    showing = reviewer.next()
    process = reviewer.server.process
    timer = threading.Timer(after, lambda: process.send_signal(signal.SIGKILL))
    timer.start()
    with suppress(httpx.HTTPError):  # not confirmed: sent again to the next server
        reviewer.send(showing, given)
    timer.join()
    return showing


def check(folder: Path, confirmed: dict[str, str]) -> dict[str, int]:
    """Confirmed answers that are lost or changed, and pairs that were counted twice."""
    history, _ = read_journal(folder / f"review/journal/{REVIEWER}.jsonl")
    found = {shown.showing: (shown, answer.answer) for shown, answer in history.counted}
    lost = changed = 0
    for showing, given in confirmed.items():
        if showing not in found:
            lost += 1
            continue
        shown, answer = found[showing]
        side = {"a": shown.a_side, "b": OTHER[shown.a_side]}.get(answer, answer)
        changed += side != given
    table = read_table(folder / "review" / TABLE, schema.VERDICTS)
    first = table.filter(pl.col("draw") != "repeat")
    return {
        "confirmed": len(confirmed),
        "in the table": len(table),
        "lost": lost,
        "changed": changed,
        "pairs counted twice": int(first.select("case_id", "mask_a", "mask_b").is_duplicated().sum()),
        "more in the table than confirmed": len(table) - len(confirmed),
    }


def kill_once(reviewer: Reviewer, number: int, rng: Any) -> Kill:
    for _ in range(BETWEEN):
        reviewer.send(reviewer.next(), GIVEN[rng.integers(4)])
    if number % 5 == 0:
        reviewer.server.end(signal.SIGKILL)
        _, torn = answers_on_disk(reviewer.folder)
        return Kill(number, "between", 0.0, False, torn)
    # An answer takes a few milliseconds, so many of these kills meet the answer on its way.
    after = float(rng.uniform(0, 0.012))
    showing = kill_during(reviewer, GIVEN[rng.integers(4)], after)
    reviewer.server.end(signal.SIGKILL)
    on_disk, torn = answers_on_disk(reviewer.folder)
    when = "between" if showing in reviewer.confirmed else "during"
    return Kill(number, when, round(1000 * after, 2), bool(on_disk[showing]), torn)


@click.command(help=__doc__)
@click.option("--kills", default=50, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(kills: int, seed: int, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    # 10 pairs a case, half of the cases are of the pool.
    write_run(out, 2 * (kills * (BETWEEN + 1) // 10 + 4))
    rng = numpy_generator(seed, "review_kills")
    reviewer, rows, started = Reviewer(out), [], time.monotonic()
    for number in range(kills):
        rows.append(kill_once(reviewer, number, rng))
        reviewer.start()
    reviewer.server.end()
    with (out / "review_kills.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    met = Counter((row.when, row.written) for row in rows)
    click.echo(
        f"{kills} kills in {time.monotonic() - started:.0f} s: "
        + ", ".join(
            f"{count} {when} answers{', written' if written and when == 'during' else ''}"
            for (when, written), count in sorted(met.items())
        )
        + f"; {sum(row.torn > 0 for row in rows)} torn lines"
    )
    for name, count in check(out, reviewer.confirmed).items():
        click.echo(f"{name}: {count}")


if __name__ == "__main__":
    main()
