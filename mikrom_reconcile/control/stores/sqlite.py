"""The embedded store: placements and runs in one SQLite file, leases and their tokens in lock files.

It must not hold anything that a run could not do without (rule 1 of the architecture): a broken file is moved aside and
begun anew, and where none can be used, the run goes on without.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from mikrom_reconcile.control.stores.kept_runs import (
    name_of,
    packed,
    placements_in,
    repeated,
    room_of,
    size_of,
    unpacked,
)
from mikrom_reconcile.core.model.errors import BusyError, SetupError
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.run import RunRecord
from mikrom_reconcile.limits import RUNS
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.folders import make_folder

T = TypeVar("T")

_VERSION = 2
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS placements (project TEXT PRIMARY KEY, placements BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS runs (room TEXT, name TEXT, at REAL, record BLOB, PRIMARY KEY (room, name))",
)
_log = logging.getLogger(__name__)


class FileLease:
    """A held lease: an OFD lock on a file with its token and its holder. The kernel gives it back when that one dies.

    It is lost when it is released or when its file is replaced behind its back.
    """

    def __init__(self, path: Path, fd: int, token: int, holder: str) -> None:
        self._path = path
        self._fd: int | None = fd
        self.token = token
        self._write(fd, f"{holder} (pid {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC)")

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
            self._write(fd, "")  # the next that fails to take it must not read an old name
            locks.give_back(fd)

    def _write(self, fd: int, holder: str) -> None:
        with suppress(OSError):  # a full disk: the lock is the lease, and hosts remember tokens, too
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{self.token} {holder}".encode(), 0)


class SqliteStore:
    """A `RunStore` for one machine. Safe to use from many threads and processes at once."""

    def __init__(self, path: Path, lock_dir: Path) -> None:
        self._path = path
        self._lock_dir = lock_dir
        self._was_told = False

    def lease(self, scope: str, *, holder: str, ttl_s: float, at_least: int) -> FileLease:
        """Take the lease of a project, with a token of at least `at_least`. Raises BusyError naming the holder.

        `ttl_s` has no meaning here: the kernel gives the lease back when its holder dies.
        """
        del ttl_s
        path = self._lock_dir / f"{quote(scope, safe='')}.lease"
        try:
            fd = locks.open_taken(path)
            other = "" if fd is not None else path.read_text(errors="replace").partition(" ")[2]
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}; the state folder must be writable") from error
        if fd is None:
            other = other or "another process"
            raise BusyError(f"project {scope} is being changed by {other}; wait for that run to end")
        before = os.pread(fd, 15, 0).partition(b" ")[0]
        return FileLease(path, fd, max(1, at_least, int(before) + 1 if before.isdigit() else 1), holder)

    def placements(self, project: str) -> Placements:
        """Where the project's VMs were last known to be; empty when nothing is remembered."""
        query = "SELECT placements FROM placements WHERE project = ?"
        row = self._work(lambda db: db.execute(query, (project,)).fetchone(), without=None)
        return placements_in(row and row[0])

    def remember(self, project: str, placements: Placements) -> None:
        """Replace the placements of a project."""
        row = (project, msgspec.json.encode(placements))
        self._work(lambda db: db.execute("INSERT OR REPLACE INTO placements VALUES (?, ?)", row), without=None)

    def save(self, run: RunRecord) -> None:
        """Keep a run as far as it is; those for which its room has no place any more are dropped."""
        room, name = room_of(run), name_of(run)

        def keep(db: sqlite3.Connection) -> None:
            before = db.execute("SELECT record FROM runs WHERE room = ? AND name = ?", (room, name)).fetchone()
            row = (room, name, run.finished_at.timestamp(), packed(repeated(before and before[0], run)))
            db.execute("DELETE FROM runs WHERE room = 'going' AND name = ?", (run.run_id,))
            db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", row)
            latest = "SELECT name FROM runs WHERE room = ? ORDER BY at DESC LIMIT ?"
            db.execute(f"DELETE FROM runs WHERE room = ? AND name NOT IN ({latest})", (room, room, size_of(room)))  # noqa: S608

        self._work(keep, without=None)

    def runs(self, limit: int) -> tuple[RunRecord, ...]:
        """The latest runs, newest first."""
        query = "SELECT name, record, at FROM runs ORDER BY at DESC LIMIT ?"
        rows: list[tuple[str, bytes, float]] = self._work(lambda db: db.execute(query, (limit,)).fetchall(), without=[])
        return tuple(unpacked(*row) for row in rows)

    def _work(self, unit: Callable[[sqlite3.Connection], T], *, without: T) -> T:
        """The result of `unit` in one transaction, in a new file if the old one is broken; `without`, and a line in the
        log, where no file can be used.
        """
        try:
            try:
                return self._transaction(unit)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # a subclass: the file is busy, full or not to be opened
                    raise
                self._move_aside(error)
                return self._transaction(unit)
        except (OSError, sqlite3.Error) as error:
            if not self._was_told:
                why = getattr(error, "strerror", None) or error
                meant = "going on without; no VM is concerned, but history will not know of it"
                _log.warning("%s cannot be used (%s): %s", self._path, why, meant)
            self._was_told = True
            return without

    def _transaction(self, unit: Callable[[sqlite3.Connection], T]) -> T:
        make_folder(self._path.parent)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # closed to others from the start
        with closing(sqlite3.connect(self._path, timeout=RUNS.store_wait_s, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")  # what a power cut spoils is moved aside
            db.execute("BEGIN IMMEDIATE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in {0, _VERSION}:
                raise sqlite3.DatabaseError(f"version {version} of another release")
            for statement in _SCHEMA:
                db.execute(statement)
            if version == 0:
                db.execute(f"PRAGMA user_version = {_VERSION}")
            result = unit(db)
            db.execute("COMMIT")
            return result

    def _move_aside(self, why: Exception) -> None:
        aside = f"{self._path}.unusable-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        for suffix in ("-journal", "-wal", "-shm", ""):
            with suppress(FileNotFoundError):  # another process may have been faster
                Path(f"{self._path}{suffix}").rename(f"{aside}{suffix}")
        _log.warning("%s cannot be used (%s): moved to %s and begun anew, no VM is concerned", self._path, why, aside)
