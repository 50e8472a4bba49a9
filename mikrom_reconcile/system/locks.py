"""Open-file-description locks: the one kind that can be asked about without being taken.

Both sides hold such locks (leases, actions, VMMs), hence the place below both. Nothing here waits: a blocking
lock call in one greenlet stops its whole worker. Never `flock`, because an observer would have to take it to
know, and never `lockf`, because two descriptors of one process would both succeed.

A lock file is only unlinked by its holder (`give_back`), and whoever takes a lock looks whether its file is still the
one at its path: else a file made anew beside the old one would have a holder of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mikrom_reconcile.system.folders import make_folder

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
    while True:
        fd = open_lock_file(path)
        is_ours = False
        try:
            if not take(fd):
                return None
            is_ours = _is_at(path, fd)
            if is_ours:
                return fd
        finally:
            if not is_ours:
                os.close(fd)


@contextmanager
def held(path: Path, *, until: float = 0.0, poll_s: float = 0.05, unlink: bool = False) -> Iterator[bool]:
    """Hold the lock at `path` inside the block, awaited `until` then (monotonic). Yields whether it is ours.

    With `unlink` its file goes with it. Raises OSError.
    """
    while (fd := open_taken(path)) is None and time.monotonic() < until:
        time.sleep(poll_s)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            give_back(fd, unlink=path if unlink else None)


def give_back(fd: int, *, unlink: Path | None = None) -> None:
    """Free the lock on `fd` for every holder of this open file, and close it; `unlink` is its path, not to come back.

    Closing alone may free it late: a child that another thread is just spawning keeps a copy until its exec.
    """
    try:
        if unlink is not None:
            with suppress(OSError):  # it stays, as an empty file
                unlink.unlink()
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    """Whether the file of `fd` is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))  # noqa: PTH116 - for every action
    except FileNotFoundError:
        return False


def is_taken(path: Path) -> bool:
    """Whether anybody holds the lock at `path`. Takes nothing; a missing file is held by nobody."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        if not _is_at(path, fd):
            return is_taken(path)
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
