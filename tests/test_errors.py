"""Errors that are a user's to mend, and those that are ours."""

from __future__ import annotations

import errno
import os

import polars as pl
import pytest

from pipeline.errors import BadInput


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "masks.zarr/c/0"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        pl.exceptions.ComputeError("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said(error):
    found = BadInput.of(error)
    assert str(found).startswith("the disk is full (")
    assert str(found).endswith("; free some space and run again, finished work is kept")


def test_bad_input_is_itself_and_our_own_errors_are_none():
    bad = BadInput("case 'a' is wrong")
    assert BadInput.of(bad) is bad
    assert BadInput.of(OSError(errno.ENOENT, os.strerror(errno.ENOENT))) is None
    assert BadInput.of(ZeroDivisionError("division by zero")) is None


def test_a_full_disk_that_many_cases_meet_is_said_once():
    errors = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"masks.zarr/c/{case}") for case in range(3)]
    said = [str(BadInput.of(error)) for error in errors]
    assert str(BadInput.all(["case 'b'", *said])).splitlines() == ["case 'b'", said[-1]]


def test_the_same_message_of_many_cases_is_said_once():
    assert str(BadInput.all(["a knob is wrong", "case 'b'", "a knob is wrong"])) == "a knob is wrong\ncase 'b'"
