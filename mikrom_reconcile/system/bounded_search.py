"""Regular expressions of users over what guests print: each search ends.

Python's engine backtracks, holds the interpreter, and cannot be told to stop. So what repeats anything is
searched in a process of its own, whose alarm ends it; without a repetition the time follows from the sizes alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mikrom_reconcile.limits import CHECKS
from mikrom_reconcile.system import processes

_REPEATING = frozenset("*+?{")

_PROGRAM = f"""
import re, signal, sys
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
found = re.search(sys.argv[1], sys.stdin.buffer.read().decode(errors="replace"))
sys.stdout.write("+" + found.group(0)[:{CHECKS.found_characters}] if found else "-")
"""


def first_match(pattern: str, text: bytes, *, limit_s: float) -> str | None:
    """The first 80 characters of what is found first, None for nothing. Raises TimeoutError after `limit_s`."""
    if not _REPEATING & set(pattern):
        found = re.search(pattern, text.decode(errors="replace"))
        return found.group(0)[: CHECKS.found_characters] if found else None
    answer = _answer(pattern, text, limit_s)
    if not answer.startswith(("+", "-")):
        raise TimeoutError(f"{pattern!r} was not searched for within {limit_s:g} s: write it with fewer repetitions")
    return answer[1:] if answer.startswith("+") else None


def _answer(pattern: str, text: bytes, limit_s: float) -> str:
    with _memory(text) as said, _memory(b"") as answer:
        argv = (sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, pattern, str(limit_s))
        searching = processes.identify(processes.spawn(argv, stdin=said, output=answer))
        pidfd = processes.open_pidfd(searching) if searching else None
        if pidfd is not None:
            try:
                if not processes.wait_for_end(pidfd, limit_s + CHECKS.search_start_s):
                    processes.kill(pidfd)
            finally:
                os.close(pidfd)
        processes.reap()
        return os.pread(answer, 8 * CHECKS.found_characters, 0).decode(errors="replace")


@contextmanager
def _memory(content: bytes) -> Iterator[int]:
    """A file of no disk that holds `content`."""
    fd = os.memfd_create("mikrom-search", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
