"""How a Firecracker process ended, read from its metrics file: its exit status says nothing, and is not ours to get.

Measured with 1.12.1: the last line after a reset by the guest has i8042.reset_count 1, after a crash of the guest
vcpu.failures 1, and a killed process writes none. Counters start anew with each line.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.observed import Console, End

_TAIL_BYTES = 32 << 10
"""Some lines of 4 kB."""


class _Keyboard(msgspec.Struct):
    reset_count: int = 0


class _Vcpu(msgspec.Struct):
    failures: int = 0


class _Line(msgspec.Struct):
    i8042: _Keyboard = msgspec.field(default_factory=_Keyboard)
    vcpu: _Vcpu = msgspec.field(default_factory=_Vcpu)


def end_of(metrics: Path) -> End:
    """How the process that wrote `metrics` ended. Raises OSError, but not for a missing file."""
    end: End = "killed"
    for line in tail(metrics, _TAIL_BYTES).split(b"\n"):
        try:
            counters = msgspec.json.decode(line.strip(b"\0"), type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # the first line of the tail, or one that a kill cut short
        if counters.i8042.reset_count > 0:
            end = "clean"
        elif counters.vcpu.failures > 0:
            end = "crashed"
    return end


def tail(path: Path, max_bytes: int) -> bytes:
    """The last `max_bytes` of a file, b"" when it does not exist. Raises OSError."""
    return part(path, max_bytes).content


def part(path: Path, max_bytes: int, after: int | None = None) -> Console:
    """The last `max_bytes` of a file, or of what came `after`; a file that is shorter than that is a new one.

    Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Console()
    try:
        size = os.fstat(fd).st_size
        begin = max(0, size - max_bytes, after if after is not None and after <= size else 0)
        content = os.pread(fd, min(max_bytes, size - begin), begin)
        return Console(content=content, end=begin + len(content))
    finally:
        os.close(fd)
