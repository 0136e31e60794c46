"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterable


class BadInput(ValueError):
    """Something the user gave is wrong: the message names file, case, expected, found and what to do.

    Stages turn it into one line on standard error and exit code 2.
    """

    @classmethod
    def all(cls, messages: Iterable[str]) -> BadInput:
        """One error for several findings, one line each."""
        return cls("\n".join(messages))
