"""One SQLite file whose content may be lost: a broken one is moved aside, one that cannot be used is done without.

Nothing here blocks a greenlet: SQLite's own busy timeout would stall a worker's hub, so `timeout=0`, retries with a
cooperative sleep, and a connection per unit of work. With a rollback journal, so that reading needs no room.
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

from mikrom_reconcile.limits import RUNS
from mikrom_reconcile.system.folders import make_folder

T = TypeVar("T")

APPLICATION_ID = 0x6D696B72  # "mikr", in SQLite's header: tells our files from others

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})  # the last: tables miss

_log = logging.getLogger(__name__)


class _NotOursError(sqlite3.DatabaseError):
    """The file is a database, but of another program or of another version."""

    sqlite_errorcode = sqlite3.SQLITE_NOTADB


class SqliteFile:
    """Units of work on one database file with `schema`, whose version is `version`."""

    def __init__(self, path: Path, *, schema: tuple[str, ...], version: int) -> None:
        self._path = path
        self._schema = schema
        self._version = version
        self._was_told = False

    def work(self, unit: Callable[[sqlite3.Connection], T], *, without: T) -> T:
        """The result of `unit` in one transaction; `without`, and a line in the log, where the file cannot be used.

        It is called again when somebody else was in the way, and when a broken file was moved aside.
        """
        deadline, may_move = time.monotonic() + RUNS.store_wait_s, True
        while True:
            try:
                return self._attempt(unit)
            except (OSError, sqlite3.Error) as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits only say more of the same
                if code in _BUSY and time.monotonic() < deadline:
                    time.sleep(RUNS.store_retry_s)
                elif not (code in _BROKEN and may_move and self._moved_aside(error)):
                    self._tell(error)
                    return without
                else:
                    may_move = False

    def _attempt(self, unit: Callable[[sqlite3.Connection], T]) -> T:
        make_folder(self._path.parent)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # closed to others from the start
        with closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")  # what a power cut spoils is moved aside
            db.execute("PRAGMA journal_mode = DELETE")  # earlier releases wrote a WAL
            db.execute("BEGIN IMMEDIATE")
            self._prepare(db)
            result = unit(db)
            db.execute("COMMIT")
            return result

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make an empty database ours, and refuse one that is not."""
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if (application, version) == (APPLICATION_ID, self._version):
            return
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application or version or tables:
            raise _NotOursError(f"application {application:#x}, version {version}, {tables} tables")
        for statement in self._schema:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {self._version}")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _moved_aside(self, why: Exception) -> bool:
        aside = f"{self._path}.unusable-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        for suffix in ("-journal", "-wal", "-shm", ""):
            part = Path(f"{self._path}{suffix}")
            try:
                part.rename(f"{aside}{suffix}")
            except FileNotFoundError:
                continue  # another process was faster
            except OSError:
                return False
        _log.warning("%s cannot be used (%s): moved to %s and begun anew, no VM is concerned", self._path, why, aside)
        return True

    def _tell(self, why: Exception) -> None:
        if not self._was_told:
            self._was_told = True
            _log.warning(
                "%s cannot be used (%s): going on without; no VM is concerned, but history will not know of it",
                self._path, getattr(why, "strerror", None) or why,
            )  # fmt: skip
