"""Commands of the pipeline, one thin file per stage. DVC runs most of the commands; users run the others."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from pipeline.errors import BadInput
from pipeline.lock import alone

FOLDER = click.Path(path_type=Path)


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator: print the message of a `BadInput` on standard error and exit with code 2.

    A full disk and a name that is too long for the file system are printed in the same way.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:
            if (found := BadInput.of(error)) is None:
                raise
            for line in str(found).splitlines():
                click.echo(f"error: {line}", err=True)
            sys.exit(2)

    return run


def say(name: str, findings: str | Callable[..., str | Sequence[str]], *given: Any) -> None:
    """Print what came of a stage on standard output, each line behind the name of the stage.

    `findings` is the text, or a function that makes the text or the lines from `given`. A line never fails a stage
    whose results are written: a mistake in the findings is printed in their place, and a character that the terminal
    lacks is replaced.
    """
    try:
        said = findings if isinstance(findings, str) else findings(*given)
    except Exception as error:
        said = f"finished, but its findings cannot be said ({type(error).__name__}: {error})"
    encoding = sys.stdout.encoding or "utf-8"
    for line in [said] if isinstance(said, str) else said:
        click.echo(f"{name}: {line}".encode(encoding, "replace").decode(encoding))


def stage(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator: `guarded`, with the option `--params` for the file of the knobs, and a lock on the output `out`."""

    @functools.wraps(function)
    def run(out: Path | None, **kwargs: Any) -> None:
        with alone(out) if out else nullcontext():
            function(out=out, **kwargs)

    return click.option(
        "--params", "params_file", type=FOLDER, default="params.yaml", show_default=True, help="Knobs of all stages."
    )(guarded(run))
