"""From words to an exit code: finds and runs the command, and gives every way it can end a number and a message."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from itertools import pairwise
from typing import TextIO

import click

from mikrom_reconcile import __version__
from mikrom_reconcile.cli.commands import COMMANDS, overview
from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.core.model.errors import BusyError, MikromError, PastDeadlineError, SpecError, UsageError
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.formats import problems_text
from mikrom_reconcile.output.run_result import LATE, USAGE
from mikrom_reconcile.output.text import Document, Style, sanitize
from mikrom_reconcile.settings import misspelt


def style_of(stream: TextIO, *, full: bool = False) -> Style:
    """Colours for a terminal that understands them, unless NO_COLOR says no; `full` is handed on."""
    colour = stream.isatty() and os.environ.get("TERM") != "dumb" and "CI" not in os.environ
    return Style(colour=colour and not os.environ.get("NO_COLOR"), full=full)


def show(text: str, stream: TextIO | None = None) -> None:
    """Write to stdout, or to `stream`, at once. Nothing fails because nobody hears what goes to stderr."""
    target = stream or sys.stdout
    with suppress(OSError) if target is sys.stderr else nullcontext():
        target.write(text)
        target.flush()


def present(form: str, document: Callable[[], Document], text: Callable[[Style], str]) -> None:
    """Show something on stdout in the form that was asked for; only that form is made."""
    if form == "text":
        show(text(style_of(sys.stdout)))
    else:
        show(formats.DOCUMENT[form](document()))


def warn(message: str) -> None:
    """One line on stderr."""
    show(f"{style_of(sys.stderr).paint('warning:', 'yellow')} {sanitize(message)}\n", sys.stderr)


def can_ask() -> bool:
    """Whether there is a person to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> str:
    """The answer, without white space around it; "" when there is none."""
    show(f"{style_of(sys.stderr).paint(question, 'bold')} ", sys.stderr)
    return sys.stdin.readline().strip()


COMPLETE_VARIABLE = "_MIKROM_COMPLETE"  # set when a shell asks what may come next

ERROR = 1
INTERNAL = 70
INTERRUPTED = 130


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
                if not isinstance(option, click.Option) or option.multiple or given.count(option) == 1:
                    continue
                if not option.is_flag or option.secondary_opts:  # the last would win
                    several = " with commas between the words" if option.name == "limit" else ""
                    raise click.UsageError(f"{option.opts[-1]} is given twice; give it once{several}", context)
        return name, command, rest


class LazyCommands(Commands):
    """The commands of the table."""

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
        module, text = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"mikrom_reconcile.cli.{module}"), cmd_name)
        command.short_help = text
        return command

    def get_help(self, ctx: click.Context) -> str:
        """The same page as `mikrom --help` without click."""
        del ctx
        return overview().rstrip()


root = LazyCommands(name="mikrom", context_settings={"help_option_names": ["-h", "--help"]})
click.version_option(__version__, message="%(version)s")(root)


def run(words: Sequence[str]) -> int:
    """The exit code of `mikrom WORDS`. What went wrong is on stderr; a stdout that fails is the caller's matter."""
    if instruction := os.environ.get(COMPLETE_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(root, {}, "mikrom", COMPLETE_VARIABLE, instruction)
    for mistake in misspelt():
        warn(mistake)
    try:
        with root.make_context("mikrom", list(words)) as context:  # not root.main(): it makes 1 of a broken pipe
            return int(root.invoke(context) or 0)
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, click.Abort) as asked:
        by = str(asked) or "Ctrl-C"
        message = f"Interrupted by {by}: nothing more was begun. What was under way is brought to its end."
        show(f"\n{message}\n", sys.stderr)
        return _documented(words, message, INTERRUPTED)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return _documented(words, error.format_message(), USAGE)
    except MikromError as error:
        return _failed(words, error)
    except Exception as error:
        if isinstance(error, OSError) and _was_written(error):
            raise
        return _documented(words, f"mikrom made a mistake: {error}", _internal())


def _was_written(error: OSError) -> bool:
    from traceback import walk_tb

    writers = {show.__code__, click.echo.__code__}
    return any(frame.f_code in writers for frame, _ in walk_tb(error.__traceback__))


def _documented(words: Sequence[str], message: str, code: int, problems: Sequence[SpecProblem] = ()) -> int:
    """`code`, after the error was written to stdout in the form that -o asks for, if programs read it."""
    form = ""
    for word, following in pairwise((*words, "")):
        if word in {"-o", "--output"}:
            form = following
        elif word.startswith(("-o", "--output=")):
            form = word.removeprefix("-o").removeprefix("--output=")
    if form in formats.REPORTS:
        show(formats.REPORTS[form](problems, (), sanitize(message)))
    elif form in formats.DOCUMENT:
        show(formats.DOCUMENT[form]({"error": sanitize(message), "exit_code": code, "problems": problems}))
    return code


def _failed(words: Sequence[str], error: MikromError) -> int:
    style, problems = style_of(sys.stderr), error.problems if isinstance(error, SpecError) else ()
    if problems:
        show(problems_text(problems, style), sys.stderr)
    else:
        show(f"{style.paint('error:', 'red')} {sanitize(str(error))}\n", sys.stderr)
    code = USAGE if isinstance(error, UsageError) else ERROR
    return _documented(words, str(error), LATE if isinstance(error, BusyError | PastDeadlineError) else code, problems)


def _internal() -> int:
    """A mistake of this program: one line says so, and a file keeps the traceback for a report."""
    import tempfile  # 8 ms that only a mistake has to pay
    import traceback

    trace = traceback.format_exc()
    if os.environ.get("MIKROM_DEBUG") == "1":
        show(trace, sys.stderr)
        return INTERNAL
    last = sanitize(trace.strip().rpartition("\n")[2])
    fd, path = tempfile.mkstemp(prefix="mikrom-error-", suffix=".txt")
    with os.fdopen(fd, "w", encoding="utf-8", errors="replace") as file:
        file.write(trace)
    show(f"mikrom made a mistake: {last}\nPlease report it with {path} (MIKROM_DEBUG=1 shows it here).\n", sys.stderr)
    return INTERNAL
