"""Errors that a user can act on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import PurePath

_SHOWN = 40


class BadInput(ValueError):
    """An input of the user is wrong. The message names file, case, expected, found and what to do.

    Stages print every line of the message as an error on standard error and exit with code 2.
    """

    @classmethod
    def all(cls, messages: Iterable[str]) -> BadInput:
        """One error from several messages, one line per message."""
        return cls("\n".join(messages))

    @classmethod
    def of_long_name(cls, error: OSError) -> BadInput | None:
        """The error for a name or path that is longer than the file system takes. None for any other `error`."""
        if error.errno != errno.ENAMETOOLONG:
            return None
        path = str(error.filename or "")
        longest = max(PurePath(path).parts, key=len, default="")
        return cls(
            f"{path}: expected names and a path that the file system takes (names: mostly 255 bytes), found "
            f"{len(os.fsencode(longest))} bytes in '{longest[:_SHOWN]}...' and {len(os.fsencode(path))} in all; "
            "shorten the names"
        )
