"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterable


class BadInput(ValueError):
    """An input of the user is wrong. The message names file, case, expected, found and what to do.

    Stages print every line of the message as an error on standard error and exit with code 2.
    """

    @classmethod
    def all(cls, messages: Iterable[str]) -> BadInput:
        """One error from several messages, one line per message."""
        return cls("\n".join(messages))
