"""The ends of files that a VMM or its guest goes on writing to. Only reads."""

from __future__ import annotations

import os
from pathlib import Path

from mikrom_reconcile.core.model.observed import Console


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
