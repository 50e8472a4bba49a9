"""Open-file-description locks: the one kind that can be asked about without being taken.

Never `flock`, because an observer would have to take it to know, and never `lockf`, because two descriptors of one
process would both succeed. Nothing here waits: a blocking lock call in one greenlet stops its whole worker.

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

from mikrom_reconcile.system.files import make_folder

_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid


def open_taken(path: Path) -> int | None:
    """A descriptor of the lock file at `path` that holds its lock; None when somebody else does. Raises OSError.

    The file (0600) and its folder (0700) are made where missing. The lock lasts until every duplicate of the descriptor
    is closed, in this process and in those that inherited it.
    """
    while True:
        fd = _opened(path)
        is_ours = False
        try:
            _control(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK)
            if is_ours := _is_at(path, fd):
                return fd
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                return None
            raise
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
        _control(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)
    finally:
        os.close(fd)


def is_taken(path: Path) -> bool:
    """Whether anybody holds the lock at `path`. Takes nothing; a missing file is held by nobody."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        holder = _control(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK)
        return holder != fcntl.F_UNLCK if _is_at(path, fd) else is_taken(path)
    finally:
        os.close(fd)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        make_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _control(fd: int, command: int, kind: int) -> int:
    """Do something with the lock of the whole file; returns what kind of lock is answered."""
    answer: bytes = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    return int(_FLOCK.unpack(answer)[0])


def _is_at(path: Path, fd: int) -> bool:
    """Whether the file of `fd` is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))  # noqa: PTH116 - for every action
    except FileNotFoundError:
        return False
