"""What this process may show and ask: colours and questions.

Data goes to stdout; progress, questions and warnings go to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import TextIO

from mikrom_reconcile.output import formats
from mikrom_reconcile.output.text import Document, Style, sanitize


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
