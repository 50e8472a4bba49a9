"""Small private files that are whole or absent, however the writer ended.

What stands in such a file is its caller's matter; that nobody else reads it, that no reader sees half of it and
that no odd file in its place hurts the reader is the matter of this module.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mikrom_reconcile.core.model.errors import MikromError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk that has no room left."""


class OddFileError(MikromError):
    """Something else than a small regular file is in a file's place."""


def _fsync(fd: int) -> None:
    os.fsync(fd)


sync: Callable[[int], None] = _fsync
"""Waits until the disk has what was written to a descriptor; a process on greenlets sets one that waits elsewhere."""


def write_whole(path: Path, content: bytes, *, durable: bool = True, or_before: bool = False) -> None:
    """Replace `path` by `content` (0600) so that it holds all of it or what it held before, a power cut included.

    `durable=False` spares the waiting for the disk (the better part of a millisecond, in which no greenlet runs),
    for what nobody needs after a power cut. With `or_before` that may bring back what the file held before: for half
    of the waiting. One writer at a time per path: the caller holds a lock, and what a
    killed writer left is overwritten by the next. On failure nothing is left behind but the old content. On a full disk
    `path` is written where it lies, so that nothing which is there keeps anybody from stopping it; a power cut at that
    moment may spoil it. Raises OSError.
    """
    try:
        _replace(path, content, durable=durable)
    except OSError as error:
        if error.errno not in FULL or not _overwrite(path, content, durable=durable):
            raise
    if durable and not or_before:
        sync_folder(path.parent)


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    draft = path.with_name(path.name + ".new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            _write_all(fd, content)
            if durable:
                sync(fd)
        finally:
            os.close(fd)
        os.replace(draft, path)  # noqa: PTH105 - at half of what pathlib takes
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def _overwrite(path: Path, content: bytes, *, durable: bool) -> bool:
    """Write into the room that `path` has already; False when that is too small."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_blocks * 512 < len(content):
            return False
        _write_all(fd, content)
        os.ftruncate(fd, len(content))
        if durable:
            sync(fd)
    finally:
        os.close(fd)
    return True


class SharedFolder:
    """A folder in which many writers make names at once: those who wait share the next sync.

    One that had begun before a name was made says nothing about it, so each waits for one that begins later.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = threading.Lock()
        self._begun = 0
        self._ended = 0

    def sync(self) -> None:
        """As `sync_folder`. Raises OSError."""
        needed = self._begun + 1
        with self._turn:
            if self._ended >= needed:
                return
            self._begun += 1
            sync_folder(self._folder)
            self._ended = self._begun


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def read_small(path: Path, *, max_bytes: int) -> bytes | None:
    """The content of `path`, or None when there is no such file.

    Raises OddFileError for what is no regular file or holds more than `max_bytes`, and OSError. Never waits for
    the other end of a FIFO, never follows a symlink.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OddFileError(f"{path} is not a regular file")
        if found.st_size > max_bytes:
            raise OddFileError(f"{path} holds {found.st_size} bytes, more than the {max_bytes} that make sense")
        return os.read(fd, max_bytes)
    finally:
        os.close(fd)


def _write_all(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]
