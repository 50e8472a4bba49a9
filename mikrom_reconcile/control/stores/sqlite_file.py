"""One SQLite file whose content may be lost: who cannot use it moves it aside and begins anew.

Nothing here blocks a greenlet: SQLite's own busy timeout would stall a worker's hub, so `timeout=0`, retries with a
cooperative sleep, and a connection per unit of work.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from mikrom_reconcile import locks
from mikrom_reconcile.core.errors import BusyError, SetupError
from mikrom_reconcile.folders import make_folder

T = TypeVar("T")

APPLICATION_ID = 0x6D696B72  # "mikr", in SQLite's header: tells our files from others

_PATIENCE_S = 10.0  # a unit of work takes milliseconds: whoever keeps the file longer is stuck
_RETRY_S = 0.005
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_UNUSABLE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})  # the last: tables miss

_log = logging.getLogger(__name__)


class _NotOursError(Exception):
    """The file is a database, but of another program or of another version."""


class SqliteFile:
    """Units of work on one database file with `schema`, whose version is `version`."""

    def __init__(self, path: Path, *, lock_path: Path, schema: tuple[str, ...], version: int) -> None:
        self._path = path
        self._lock_path = lock_path
        self._schema = schema
        self._version = version

    def work(self, unit: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `unit` in one transaction. It is called again when somebody else was in the way.

        Raises BusyError when the file stays locked, SetupError when it can be neither used nor replaced.
        """
        deadline = time.monotonic() + _PATIENCE_S
        begun_anew = False
        while True:
            inode = self._inode()
            try:
                return self._attempt(unit)
            except (_NotOursError, sqlite3.DatabaseError) as error:
                if not _is_busy(error):
                    if begun_anew or not _is_unusable(error):
                        raise SetupError(f"{self._path}: {error}; is the disk full or read-only?") from error
                    begun_anew = self._set_aside(inode, why=str(error))
            if time.monotonic() > deadline:
                raise BusyError(f"{self._path}: another process has kept it locked for {_PATIENCE_S:g} s")
            time.sleep(_RETRY_S)

    def _inode(self) -> int:
        """The file's inode; an empty file is made where there is none, closed to others from the start."""
        try:
            make_folder(self._path.parent)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(f"{self._path}: {error.strerror}; the state folder must be writable") from error
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def _attempt(self, unit: Callable[[sqlite3.Connection], T]) -> T:
        with closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as db:
            self._prepare(db)
            db.execute("BEGIN IMMEDIATE")
            result = unit(db)
            db.execute("COMMIT")
            return result

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make an empty database ours, and refuse one that is not."""
        db.execute("BEGIN")  # one snapshot: what another thread is just making must not look like a foreign file
        ours = self._is_ours(db)
        db.execute("COMMIT")
        if ours:
            return
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        if not self._is_ours(db):  # nobody else was faster
            for statement in self._schema:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {self._version}")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("COMMIT")

    def _is_ours(self, db: sqlite3.Connection) -> bool:
        """False for an empty database. Raises _NotOursError for anything else that is not ours."""
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (application, version) == (APPLICATION_ID, self._version):
            return True
        if application or version or tables:
            raise _NotOursError(f"application {application:#x}, version {version}, {tables} tables")
        return False

    def _set_aside(self, inode: int, *, why: str) -> bool:
        """Move the unusable file with this inode away. False when another process is at it, or was faster."""
        aside = f"{self._path}.unusable-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        try:
            fd = locks.open_lock_file(self._lock_path)
            try:
                if not locks.take(fd) or self._path.stat().st_ino != inode:
                    return False
                for suffix in ("-wal", "-shm", ""):
                    part = Path(f"{self._path}{suffix}")
                    if part.exists():
                        part.rename(f"{aside}{suffix}")
            finally:
                os.close(fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SetupError(f"{self._path}: {why}, and it cannot be moved away: {error}") from error
        _log.warning("%s cannot be used (%s): moved to %s and begun anew, no VM is concerned", self._path, why, aside)
        return True


def _is_busy(error: Exception) -> bool:
    return _code(error) in _BUSY


def _is_unusable(error: Exception) -> bool:
    return isinstance(error, _NotOursError) or _code(error) in _UNUSABLE


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits only say more of the same
