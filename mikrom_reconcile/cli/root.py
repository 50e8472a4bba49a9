"""The click group that imports a command's module when the command is called."""

from __future__ import annotations

import difflib
from importlib import import_module

import click

from mikrom_reconcile import __version__
from mikrom_reconcile.cli.commands import COMMANDS, overview


class LazyCommands(click.Group):
    """The commands of the table in `commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the table's order."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The click command of that name, imported now."""
        if cmd_name.startswith("-"):
            return None
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "`mikrom --help` lists the commands"
            raise click.UsageError(f"there is no command {cmd_name!r}; {hint}", ctx)
        _, module, text = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"mikrom_reconcile.cli.{module}"), cmd_name)
        command.short_help = text
        return command

    def get_help(self, ctx: click.Context) -> str:
        """The same page as `mikrom --help` without click."""
        del ctx
        return overview().rstrip()


root = LazyCommands(name="mikrom", context_settings={"help_option_names": ["-h", "--help"]})
click.version_option(__version__, message="%(version)s")(root)
