"""Locks that say who may act on a VM and whether its VMM lives.

They are OFD write locks: bound to an open file, not to a process. So two threads, two greenlets and two
processes exclude each other alike, a child that inherits the descriptor holds the lock for as long as it lives,
and the kernel gives it back when the last holder dies. Nothing here ever waits for a lock (a greenlet that blocks
stops its whole worker), and a lock file is never unlinked (an unlinked and remade one has two holders).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from mikrom_reconcile.host.files import make_folder

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, len, pid (0 for OFD locks)


def try_lock(path: Path) -> int | None:
    """Take the lock on `path` and return the descriptor that holds it, or None when somebody else does.

    The descriptor is closed on exec; who passes it on as a child's descriptor passes the lock on. Give it back
    with `unlock`, or with a plain `os.close` when a child goes on holding it. Raises OSError.
    """
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        os.close(fd)
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return None
        raise
    return fd


def unlock(fd: int) -> None:
    """Give the lock back for every holder of this open file, and close the descriptor.

    Closing alone is not enough: a child that another thread is just spawning holds a copy until its exec.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock on `path`. Takes nothing, so that asking never stands in a taker's way."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    finally:
        os.close(fd)
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK
