"""The click group that imports a command's module when the command is called."""

from __future__ import annotations

import difflib
from importlib import import_module

import click

from mikrom_reconcile import __version__
from mikrom_reconcile.cli.commands import COMMANDS, overview


class Commands(click.Group):
    """Commands that refuse an option whose first value would be lost because it is given twice."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the words name. Raises click.UsageError."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            context = click.Context(command, parent=ctx, info_name=name)
            _, _, given = command.make_parser(context).parse_args(list(rest))
            for option in given:
                if isinstance(option, click.Option) and _one_of_many(option) and given.count(option) > 1:
                    several = " with commas between the words" if option.name == "limit" else ""
                    raise click.UsageError(f"{option.opts[-1]} is given twice; give it once{several}", context)
        return name, command, rest


def _one_of_many(option: click.Option) -> bool:
    """Whether the last value of an option would win over others."""
    return not option.multiple and (not option.is_flag or bool(option.secondary_opts))


class LazyCommands(Commands):
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
