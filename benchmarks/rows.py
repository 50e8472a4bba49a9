"""A line of the table, and the CPU time of a program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_LINE = "{:<58}{:>14}{:>14}{:>8}  {}"

HEAD = _LINE.format("what", "ours", "other", "ratio", "goal")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, in words and with units."""

    what: str
    ours: str
    other: str = ""
    ratio: str = ""
    goal: str = ""

    def text(self) -> str:
        """The row as a line."""
        return _LINE.format(self.what, self.ours, self.other, self.ratio, self.goal).rstrip()


def cpu_s_of(argv: Sequence[str]) -> float:
    """CPU seconds that a program takes from its start to its end. Raises CalledProcessError when it fails."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return usage.ru_utime + usage.ru_stime
