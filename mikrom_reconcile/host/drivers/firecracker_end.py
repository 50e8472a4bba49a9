"""How a Firecracker process ended, read from its metrics file: its exit status says nothing, and is not ours to get.

Measured with 1.12.1: the last line after a reset by the guest has i8042.reset_count 1, after a crash of the guest
vcpu.failures 1, and a killed process writes none. Counters start anew with each line.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.observed import End

_TAIL_BYTES = 32 << 10
"""Some lines of 4 kB."""

_MAX_METRICS_BYTES = 1 << 20
"""A line a minute: some four hours."""


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


def trim(metrics: Path) -> None:
    """Empty the file of a *living* process when it has grown: 6 MB a day otherwise. Raises OSError.

    Firecracker goes on at its old offset and so leaves a hole, hence blocks and not size. Should the process end
    at this very moment, its last line is lost and its end counts as a kill.
    """
    if metrics.stat().st_blocks * 512 > _MAX_METRICS_BYTES:
        os.truncate(metrics, 0)


def tail(path: Path, max_bytes: int) -> bytes:
    """The last `max_bytes` of a file, b"" when it does not exist. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(fd, max_bytes, max(0, os.fstat(fd).st_size - max_bytes))
    finally:
        os.close(fd)
