"""From words to an exit code: runs a command, and turns every way it can end into a number and a message."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from mikrom_reconcile.cli.root import root
from mikrom_reconcile.cli.terminal import show, style_of, warn
from mikrom_reconcile.core.errors import BusyError, MikromError, PastDeadlineError, SpecError, UsageError
from mikrom_reconcile.output.neutral import one_line
from mikrom_reconcile.output.problem_text import problems_text
from mikrom_reconcile.output.verdict import LATE
from mikrom_reconcile.settings import misspelt

COMPLETE_VARIABLE = "_MIKROM_COMPLETE"
"""Set when a shell asks what may come next."""

ERROR = 1
USAGE = 64
INTERNAL = 70
INTERRUPTED = 130


def run(words: Sequence[str]) -> int:
    """The exit code of `mikrom WORDS`. What went wrong is on stderr. BrokenPipeError is the caller's matter."""
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
    except (KeyboardInterrupt, click.Abort):
        show("\nInterrupted: nothing more was begun. What was under way is brought to its end.\n", sys.stderr)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return USAGE
    except MikromError as error:
        return _told(error)
    except Exception:  # noqa: BLE001 - the last place where a mistake of ours can be told
        return _internal()


def _told(error: MikromError) -> int:
    style = style_of(sys.stderr)
    if isinstance(error, SpecError):
        show(problems_text(error.problems, style), sys.stderr)
    else:
        show(f"{style.paint('error:', 'red')} {one_line(str(error))}\n", sys.stderr)
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
    last = one_line(trace.strip().rpartition("\n")[2])
    fd, path = tempfile.mkstemp(prefix="mikrom-error-", suffix=".txt")
    with os.fdopen(fd, "w", encoding="utf-8", errors="replace") as file:
        file.write(trace)
    show(f"mikrom made a mistake: {last}\nPlease report it with {path} (MIKROM_DEBUG=1 shows it here).\n", sys.stderr)
    return INTERNAL
