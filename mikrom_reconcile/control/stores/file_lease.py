"""The lease of an embedded run: an OFD lock on a file that names its holder.

The kernel gives it back when the holder dies, so it needs no TTL and no renewal. It does not know tokens.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.errors import BusyError, SetupError
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.system import locks


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lease, as written into its file."""

    holder: str
    pid: int
    since: datetime


class FileLease:
    """A held lease. It is lost when it is released or when its file is replaced behind its back."""

    def __init__(self, path: Path, fd: int, token: int) -> None:
        self._path = path
        self._fd: int | None = fd
        self.token = token

    def held(self) -> bool:
        """False once it may have been lost: send nothing more."""
        if self._fd is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Give it back; twice is fine."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.ftruncate(fd, 0)  # whoever fails to take it next must not read an old name
            locks.give_back(fd)


def take_lease_file(path: Path, *, scope: str, holder: str) -> int:
    """The descriptor whose lock is the lease of `scope`. Raises BusyError naming the holder, SetupError."""
    try:
        fd = locks.open_taken(path)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}; the state folder must be writable") from error
    if fd is None:
        raise BusyError(f"project {scope} is being changed by {_holder_in(path)}; wait for that run to end")
    told = Holder(holder=holder, pid=os.getpid(), since=datetime.now(UTC).replace(microsecond=0))
    os.ftruncate(fd, 0)
    with suppress(OSError):  # a full disk: the lock is the lease, and only its holder's name is missing
        os.pwrite(fd, msgspec.json.encode(told), 0)
    return fd


def _holder_in(path: Path) -> str:
    try:
        told = msgspec.json.decode(path.read_bytes(), type=ready(Holder))
    except (OSError, msgspec.MsgspecError):
        return "somebody who has not said who yet"
    return f"{told.holder} (pid {told.pid}, since {told.since:%Y-%m-%d %H:%M:%S} UTC)"
