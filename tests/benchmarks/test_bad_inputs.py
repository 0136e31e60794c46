"""Bad inputs: a handful runs, and the published table is whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bad_inputs import BAD, right, tried
from benchmarks.faults.entry import PREPARE, Bad, Projects, nothing
from benchmarks.faults.good import GOOD

PAGE = (Path(__file__).parents[2] / "docs/results/bad_inputs.md").read_text()
HANDFUL = (
    "a PNG of which one bit is flipped",
    "cases under `validation`",
    "a column that is there twice",
    "a key that is there twice",
    "an animation",
)
"""Inputs of projects that need no run before."""


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Projects:
    return Projects(tmp_path_factory.mktemp("projects").resolve())


@pytest.mark.parametrize(
    "one", [next(one for one in BAD if one.what == what and one.start != "run") for what in HANDFUL], ids=HANDFUL
)
def test_a_handful_of_bad_inputs(one: Bad, projects: Projects) -> None:
    outcome = tried(one, projects)
    assert outcome.faults == ()
    assert one.place in outcome.message


@pytest.mark.parametrize("one", [one for one in GOOD if one.start == "volumes"][:2], ids=lambda one: one.what)
def test_odd_inputs_that_are_right(one, projects: Projects) -> None:
    assert right(one, projects).faults == ()


def test_an_input_that_is_taken_and_a_message_without_its_place_do_not_pass(projects: Projects) -> None:
    taken = Bad("nothing", nothing, "raw/set", kind="", start="pictures", line=PREPARE)
    first, _, third = tried(taken, projects).faults
    assert first == "exit code 0"
    assert third.startswith("written: data/cases/cases.json")
    elsewhere = replace(next(one for one in BAD if one.what == "cases under `validation`"), place="elsewhere")
    (fault,) = tried(elsewhere, projects).faults
    assert fault.startswith("no place in: error: raw/set/dataset.json")


def test_every_input_has_a_row_of_the_page_and_all_pass() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] != "input"]
    assert len(BAD) >= 100
    assert [row[0] for row in rows] == [one.what for one in (*BAD, *GOOD)]
    assert all(row[2:4] == ["2", "yes"] for row in rows[: len(BAD)])
    assert all(row[2] == "yes" for row in rows[len(BAD) :])
    assert all(row[4] for row in rows[: len(BAD)])
    assert max(Counter((one.kind, one.what) for one in BAD).values()) == 1
