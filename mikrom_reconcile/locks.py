"""Open-file-description locks: the one kind that can be asked about without being taken.

Both sides hold such locks (leases, actions, VMMs), hence the place below both. Nothing here waits: a blocking
lock call in one greenlet stops its whole worker. Never `flock`, because an observer would have to take it to
know, and never `lockf`, because two descriptors of one process would both succeed.

A lock file is never unlinked: a file made anew beside the old one would have a holder of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from mikrom_reconcile.folders import make_folder

_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
_TAKEN = (errno.EAGAIN, errno.EACCES)


def open_lock_file(path: Path) -> int:
    """A descriptor of the lock file at `path`, 0600, made with its folder (0700) where missing."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        make_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def take(fd: int) -> bool:
    """Whether the write lock on `fd` is now ours; False when somebody else has it.

    It lasts until every duplicate of `fd` is closed, in this process and in those that inherited it.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def open_taken(path: Path) -> int | None:
    """A descriptor of the lock file at `path` that holds its lock; None when somebody else does. Raises OSError."""
    fd = open_lock_file(path)
    taken = False
    try:
        taken = take(fd)
    finally:
        if not taken:
            os.close(fd)
    return fd if taken else None


def give_back(fd: int) -> None:
    """Free the lock on `fd` for every holder of this open file, and close it.

    Closing alone may free it late: a child that another thread is just spawning keeps a copy until its exec.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)


def is_taken(path: Path) -> bool:
    """Whether anybody holds the lock at `path`. Takes nothing; a missing file is held by nobody."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
