"""From words to an exit code: runs a command, and turns every way it can end into a number and a message."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import click

from mikrom_reconcile.cli.root import root
from mikrom_reconcile.cli.terminal import show, style_of, warn
from mikrom_reconcile.core.model.errors import BusyError, MikromError, PastDeadlineError, SpecError, UsageError
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.problems import problems_text
from mikrom_reconcile.output.run_result import LATE
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.settings import misspelt

COMPLETE_VARIABLE = "_MIKROM_COMPLETE"
"""Set when a shell asks what may come next."""

ERROR = 1
USAGE = 64
INTERNAL = 70
INTERRUPTED = 130


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
        told = f"Interrupted by {by}: nothing more was begun. What was under way is brought to its end."
        show(f"\n{told}\n", sys.stderr)
        return _documented(words, told, INTERRUPTED)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return _documented(words, error.format_message(), USAGE)
    except MikromError as error:
        problems = error.problems if isinstance(error, SpecError) else ()
        return _documented(words, str(error), _told(error), problems)
    except Exception as error:
        if isinstance(error, OSError) and _was_written(error):
            raise
        return _documented(words, f"mikrom made a mistake: {error}", _internal())


def _was_written(error: OSError) -> bool:
    """Whether it is stdout that failed, and nothing else."""
    from traceback import walk_tb

    writers = {show.__code__, click.echo.__code__}
    return any(frame.f_code in writers for frame, _ in walk_tb(error.__traceback__))


def _documented(words: Sequence[str], message: str, code: int, problems: Sequence[SpecProblem] = ()) -> int:
    """`code`, after whoever asked for a form that programs read has the error in that form on stdout."""
    form = ""
    for word, following in pairwise((*words, "")):
        if word in {"-o", "--output"}:
            form = following
        elif word.startswith(("-o", "--output=")):
            form = word.removeprefix("-o").removeprefix("--output=")
    if form in formats.ERROR:
        show(formats.ERROR[form](sanitize(message), code, problems))
    return code


def _told(error: MikromError) -> int:
    style = style_of(sys.stderr)
    if isinstance(error, SpecError):
        show(problems_text(error.problems, style), sys.stderr)
    else:
        show(f"{style.paint('error:', 'red')} {sanitize(str(error))}\n", sys.stderr)
    match error:
        case UsageError():
            return USAGE
        case BusyError() | PastDeadlineError():
            return LATE
        case _:
            return ERROR


def _internal() -> int:
    """A mistake of this program: say so in a line and keep the traceback for whoever mends it."""
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
