"""Files and folders that nobody else may look into: written whole or not at all, read without surprises."""

import ctypes
import errno
import os
import posix
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import Console

T = TypeVar("T")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})  # errors of a disk that has no room left

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # never waits for the other end of a FIFO, never follows a symlink

_BLOCK = 4096
_KEEP_SIZE_PUNCH_HOLE = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class OddFileError(MikromError):
    """Something else than a small regular file is in a file's place."""


sync: Callable[[int], None] = os.fsync
"""Waits until the disk has what was written to a descriptor; a process on greenlets sets one that waits elsewhere."""


@contextmanager
def descriptor(path: Path | str, flags: int, mode: int = 0o600) -> Iterator[int]:
    """A descriptor of `path` that is closed after the block."""
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        posix.close(fd)  # under gevent that of `os` asks twice what this is


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    with descriptor(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        sync(fd)


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each closed to others (0700); `Path.mkdir` closes only the last."""
    try:
        os.mkdir(folder, 0o700)  # noqa: PTH102 - pathlib takes three times as long, and this is done for every action
    except FileExistsError:
        if not folder.is_dir():
            raise
    except FileNotFoundError:
        make_folder(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)  # noqa: PTH102 - no second time around: nothing can be made in /proc


def write_whole(path: Path, content: bytes, *, durable: bool = True, or_before: bool = False) -> None:
    """Replace `path` by `content` (0600); it has all of it or what it had before, a power cut included. One writer at a
    time. `durable=False` does not wait for the disk (0.5 to 1 ms). With `or_before` a power cut may bring back the old
    content, and where the new one fits into its place nobody waits. A full disk has `path` overwritten in place, so
    that what is there can still be stopped. Raises OSError.
    """
    if or_before and _fits_over(path, content):
        return
    try:
        _replace(path, content, durable=durable)
    except OSError as error:
        if error.errno not in FULL or not _overwrite(path, content, durable=durable):
            raise
    if durable and not or_before:
        sync_folder(path.parent)


def write_over(path: Path, content: bytes) -> None:
    """Put `content` into the file at `path` itself (0600): a reader, and whoever comes after a crash, may find only a
    part of it, and takes that for nothing. A new file for each would take ext4 a hundred times as long. Raises OSError.
    """
    with descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW) as fd:
        _write_all(fd, content)
        os.ftruncate(fd, len(content))


def _fits_over(path: Path, content: bytes) -> bool:
    """Whether `content` took the place of what a file of one block held: a disk writes a block or does not. White space
    fills it up, since its size may reach the disk before its block.
    """
    try:
        with descriptor(path, os.O_WRONLY | os.O_NOFOLLOW) as fd:
            size = os.fstat(fd).st_size
            return len(content) <= size <= _BLOCK and os.write(fd, content.ljust(size)) == size
    except OSError:
        return False


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    draft = f"{path}.new"
    try:
        with descriptor(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW) as fd:
            _write_all(fd, content)
            if durable:
                sync(fd)
        os.replace(draft, path)  # noqa: PTH105 - at half of what pathlib takes
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)  # noqa: PTH108 - a string
        raise


def _overwrite(path: Path, content: bytes, *, durable: bool) -> bool:
    with suppress(OSError), descriptor(path, os.O_WRONLY | os.O_NOFOLLOW) as fd:
        if os.fstat(fd).st_blocks * 512 >= len(content):
            _write_all(fd, content)
            os.ftruncate(fd, len(content))
            if durable:
                sync(fd)
            return True
    return False


def _write_all(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def write_named(path: str, content: bytes) -> None:
    """Put `content` where a person says: a new file is closed to others (0600), what is there stays what it is, be it a
    link, a pipe, a device or somebody's file. A full disk is found before what a file held is lost. Raises OSError.
    """
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:  # noqa: PTH123
        if not stat.S_ISREG((before := os.fstat(file.fileno())).st_mode):
            file.write(content)
            return
        try:
            os.posix_fallocate(file.fileno(), 0, len(content))
        except OSError as error:
            if error.errno in {*FULL, errno.EFBIG}:  # NFS may only not know how
                file.truncate(before.st_size)
                raise
        file.write(content)
        file.truncate()


def free_head(path: Path, *, max_bytes: int) -> None:
    """Free the beginning of `path` once it takes twice `max_bytes` of disk; its last `max_bytes` stay. Raises OSError.
    A hole is punched, so that a writer that has it open loses nothing; where there are none (NFS), it is emptied.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    end = (found.st_size - max_bytes) // _BLOCK * _BLOCK
    if found.st_blocks * 512 <= 2 * max_bytes or end <= 0:  # blocks may have been allocated ahead, as XFS does
        return
    with descriptor(path, os.O_WRONLY | os.O_NOFOLLOW) as fd:
        if _fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, 0, end) != 0:
            if (code := ctypes.get_errno()) != errno.EOPNOTSUPP:
                raise OSError(code, os.strerror(code))
            os.ftruncate(fd, 0)


def read_small(path: Path, *, max_bytes: int) -> bytes | None:
    """The content of `path`, None without one. Raises OddFileError for no regular file or a larger one, and OSError."""
    try:
        with descriptor(path, _READ) as fd:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OddFileError(f"{path} is not a regular file")
            if found.st_size > max_bytes:
                raise OddFileError(f"{path} holds {found.st_size} bytes, more than the {max_bytes} that make sense")
            return os.read(fd, found.st_size or max_bytes)  # what the kernel makes up has no size
    except FileNotFoundError:
        return None


def read_json(path: Path, kind: type[T], *, max_bytes: int) -> T | None:
    """What `decoded` makes of a small file; None where there is no such file, or something else. Raises OSError."""
    try:
        return decoded(read_small(path, max_bytes=max_bytes), kind)
    except OddFileError:
        return None


def tail(path: Path, max_bytes: int, after: int | None = None) -> Console:
    """The last `max_bytes` of a file, or of what came `after` if it is as long; empty without one. Raises OSError."""
    try:
        with descriptor(path, _READ) as fd:
            size = os.fstat(fd).st_size
            begin = max(0, size - max_bytes, after if after is not None and after <= size else 0)
            content = os.pread(fd, min(max_bytes, size - begin), begin)
            return Console(content=content, end=begin + len(content))
    except FileNotFoundError:
        return Console()
