"""Where tests keep what they make: memory where there is some, since a busy disk is no part of what they test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else "/tmp"
"""Short either way: a socket path has at most 107 bytes."""

_NOBODY = 65534


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Inside the block this process may not enter `folder`, not even as root."""
    own, mode = os.getresuid(), folder.stat().st_mode
    folder.chmod(0)
    try:
        if os.geteuid() == 0:
            os.setresuid(_NOBODY, _NOBODY, 0)
        yield
    finally:
        os.setresuid(*own)
        folder.chmod(mode)
