"""A line of the table, and the CPU time of a program."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a program and all that it started took: CPU, time, and the memory of the largest process."""

    cpu_s: float
    wall_s: float
    rss_mib: float


def usage_of(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run a program to its end. Raises CalledProcessError when it fails."""
    began_s = time.perf_counter()
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return Usage(
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.perf_counter() - began_s,
        rss_mib=usage.ru_maxrss / 1024,
    )


def cpu_s_of(argv: Sequence[str]) -> float:
    """CPU seconds that a program takes from its start to its end. Raises CalledProcessError when it fails."""
    return usage_of(argv).cpu_s
