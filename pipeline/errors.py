"""Errors that a user can act on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable


class BadInput(ValueError):
    """An input of the user is wrong. The message names file, case, expected, found and what to do.

    Stages print every line of the message as an error on standard error and exit with code 2.
    """

    @classmethod
    def all(cls, messages: Iterable[str]) -> BadInput:
        """One error from several messages, one line per message."""
        return cls("\n".join(messages))


def disk_full(error: BaseException) -> str | None:
    """What to do about an error of a full disk or a used-up quota. None for any other error.

    Libraries that write files raise errors of their own, which only repeat the text of the system.
    """
    text = str(error)
    if not any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT)):
        return None
    return f"the disk is full ({text.splitlines()[0]}); free some space and run again, finished work is kept"
