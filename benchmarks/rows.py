"""A line of the table, the goal that it is held to, and what a program takes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HEAD = ("goal", "what", "ours", "other", "ratio", "wanted", "met")
_LINE = "{:<5}{:<62}{:>17}{:>14}{:>8}  {:<16}{}"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The bound that a figure has to keep, under the number by which people speak of the goal."""

    number: int
    bound: float
    unit: str = "x"
    at_most: bool = False

    def __str__(self) -> str:
        """The bound in words."""
        return f"at {'most' if self.at_most else 'least'} {self.bound:g}{'' if self.unit == 'x' else ' '}{self.unit}"

    def met_by(self, figure: float) -> bool:
        """Whether the figure keeps the bound."""
        return figure <= self.bound if self.at_most else figure >= self.bound


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, in words and with units. `figure` is what the goal is about; None where it was not measured."""

    what: str
    ours: str
    other: str = ""
    ratio: str = ""
    goal: Goal | None = None
    figure: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The row under HEAD."""
        if self.goal is None:
            return "", self.what, self.ours, self.other, self.ratio, "", ""
        met = "" if self.figure is None else "yes" if self.goal.met_by(self.figure) else "NO"
        return str(self.goal.number), self.what, self.ours, self.other, self.ratio, str(self.goal), met


def line(cells: Sequence[str]) -> str:
    """Cells as a line of a terminal."""
    return _LINE.format(*cells).rstrip()


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', 'and') for cell in cells)} |\n" for cells in lines)


def keep_bytecode() -> None:
    """Let the programs that are measured here keep what Python compiled, as an installed mikrom does."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a program and all that it started took: CPU, time, and the memory of the largest process."""

    cpu_s: float
    wall_s: float
    rss_mib: float


def usage_of(
    argv: Sequence[str], environment: Mapping[str, str] | None = None, exit_codes: Sequence[int] = (0,)
) -> Usage:
    """Run a program to its end. Raises CalledProcessError when it ends with another exit code."""
    began_s = time.perf_counter()
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in exit_codes:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return Usage(
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.perf_counter() - began_s,
        rss_mib=usage.ru_maxrss / 1024,
    )


def cpu_s_of(argv: Sequence[str]) -> float:
    """CPU seconds that a program takes from its start to its end. Raises CalledProcessError when it fails."""
    return usage_of(argv).cpu_s


def used_cpu_s(pid: int) -> float:
    """CPU seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
