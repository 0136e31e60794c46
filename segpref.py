"""segpref: better segmentation from unlabelled images, and a measure of how far to believe the result.

The program `segpref` starts a project and runs its stages. `segpref.show` draws a pair in a notebook. An installation
has this module as the package `segpref`, with the packages `segpref.pipeline` and `segpref.stages` inside.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pkgutil import iter_modules
from types import ModuleType

import click

from pipeline import __version__
from pipeline.show import show
from pipeline.source_code import PREFIX
from stages import __name__ as _STAGES
from stages import __path__ as _FOLDERS

__all__ = ["main", "show"]


class _OneName(MetaPathFinder, Loader):
    """Finder of a clone: `segpref.pipeline` is `pipeline`, the same module, so that own kinds fit clone and wheel."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        inside = name.partition(".")[2].partition(".")[0]
        return ModuleSpec(name, self) if name.startswith(f"{__name__}.") and inside in ("pipeline", "stages") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(spec.name.partition(".")[2])
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Keep the module as it ran under its own name."""
        module.__spec__ = self.own


if PREFIX == "" and __name__ == "segpref":
    __path__: list[str] = []
    sys.meta_path.insert(0, _OneName())

SECTIONS = {
    "A project": ("init", "run", "knobs"),
    "Stages, which `dvc repro` runs": (
        "provenance",
        "prepare",
        "check",
        "base",
        "propose",
        "judge",
        "panel",
        "audit",
        "mine",
        "train",
        "validate",
        "evaluate",
        "promote",
        "report",
    ),
    "What comes of a run": ("predict", "export", "export_pairs", "export_proposals", "review", "compare", "next_round"),
}
"""Commands by their section of `segpref --help`."""


def names() -> list[str]:
    """Names of all commands: the modules of `stages`."""
    return sorted(module.name for module in iter_modules(_FOLDERS))


def command(name: str) -> click.Command:
    """Command of a module of `stages`."""
    found: click.Command = import_module(f"{_STAGES}.{name}").main
    return found


class Program(click.Group):
    """The commands of `stages`, by the names of their modules with `-` in place of `_`. Only used commands load."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [_shown(name) for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        module = name.replace("-", "_")
        return command(module) if module in names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = get_close_matches(args[0], self.list_commands(ctx), n=1)
            raise click.UsageError(error.message + (f" Did you mean '{close[0]}'?" if close else ""), ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(_shown(name), str(command(name).help).splitlines()[0]) for name in section])


def _shown(name: str) -> str:
    return name.replace("_", "-")


@click.group(cls=Program, help="Better segmentation from unlabelled images. See also `segpref COMMAND --help`.")
@click.version_option(__version__, package_name="segpref")
def _program() -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `segpref`, with these arguments or those of the command line."""
    _program(arguments, prog_name="segpref")


if __name__ == "__main__":
    main()
