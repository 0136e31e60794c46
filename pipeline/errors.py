"""Errors that a user can act on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import PurePath

_SHOWN = 40
_DISK_FULL = "the disk is full"


class BadInput(ValueError):
    """An input of the user is wrong. The message names file, case, expected, found and what to do.

    Stages print every line of the message as an error on standard error and exit with code 2.
    """

    @classmethod
    def all(cls, messages: Iterable[str]) -> BadInput:
        """One error from several messages, one line per message.

        A message that several cases raise is said once, and so is a full disk, whatever file met it.
        """
        once = {_DISK_FULL if message.startswith(_DISK_FULL) else message: message for message in messages}
        return cls("\n".join(once.values()))

    @classmethod
    def of(cls, error: Exception) -> BadInput | None:
        """The error itself, or what a user can do about a full disk or a name that is too long. None for all others."""
        if isinstance(error, cls):
            return error
        return _long_name(error) or _disk_full(error)


def _long_name(error: Exception) -> BadInput | None:
    """A name or path that is longer than the file system takes."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    path = str(error.filename or "")
    longest = max(PurePath(path).parts, key=len, default="")
    return BadInput(
        f"{path}: expected names and a path that the file system takes (names: mostly 255 bytes), found "
        f"{len(os.fsencode(longest))} bytes in '{longest[:_SHOWN]}...' and {len(os.fsencode(path))} in all; "
        "shorten the names"
    )


def _disk_full(error: Exception) -> BadInput | None:
    """A full disk or a used-up quota. Libraries raise errors of their own, which only repeat the text of the system."""
    text = str(error)
    if not any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT)):
        return None
    return BadInput(f"{_DISK_FULL} ({text.splitlines()[0]}); free some space and run again, finished work is kept")
