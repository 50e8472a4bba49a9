"""Open-file-description locks: the one kind that can be asked about without being taken (docs/adr/0005). No call
blocks. A lock file is only unlinked by its holder, and who takes a lock looks whether its file is still the one there.
"""

import fcntl
import os
import posix
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from mikrom_reconcile.system.files import descriptor, make_folder

_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid


def open_taken(path: Path, name: str = "") -> int | None:
    """A descriptor that holds the lock until every duplicate is closed; None: somebody else has it. Raises OSError. One
    file has room for a lock of each `name`, or for one of its own.
    """
    fd = _opened(path)
    is_ours = False
    place = int.from_bytes(blake2b(name.encode(), digest_size=7).digest()) if name else 0
    try:
        _control(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, place, 1 if name else 0)
        is_ours = _is_at(path, fd)
    except BlockingIOError:  # EAGAIN; never EACCES on Linux
        return None
    finally:
        if not is_ours:
            posix.close(fd)
    return fd if is_ours else open_taken(path, name)


@contextmanager
def held(path: Path, *, until: float = 0.0, poll_s: float = 0.05, unlink: bool = False) -> Iterator[bool]:
    """Hold the lock at `path`, awaited `until` then (monotonic), and say whether it is ours; `unlink` its file then."""
    while (fd := open_taken(path)) is None and time.monotonic() < until:
        time.sleep(poll_s)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            give_back(fd, unlink=path if unlink else None)


def give_back(fd: int, *, unlink: Path | None = None) -> None:
    """Free the lock on `fd` for every holder of this open file, and close it; its path goes, too, if it is `unlink`."""
    try:
        if unlink is not None:
            with suppress(OSError):  # it stays, as an empty file
                unlink.unlink()
        _control(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)  # a child that is just spawned has a copy until its exec
    finally:
        posix.close(fd)


def is_taken(path: Path) -> bool:
    """Whether anybody holds the lock at `path`. Takes nothing; a missing file is held by nobody."""
    try:
        with descriptor(path, os.O_RDONLY) as fd:
            holder = _control(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK)
            return holder != fcntl.F_UNLCK if _is_at(path, fd) else is_taken(path)
    except FileNotFoundError:
        return False


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        make_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _control(fd: int, command: int, kind: int, start: int = 0, length: int = 0) -> int:
    """No `length`: to the end, however far that is."""
    answer: bytes = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    return int(_FLOCK.unpack(answer)[0])


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))  # noqa: PTH116 - for every action
    except FileNotFoundError:
        return False
