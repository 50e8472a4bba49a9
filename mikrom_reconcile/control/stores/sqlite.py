"""The embedded store: tokens, placements and runs in one SQLite file, leases on lock files.

It must not hold anything that a run could not do without (rule 1 of the architecture): where the file cannot be used,
the run goes on.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from mikrom_reconcile.control.stores.file_lease import FileLease, take_lease_file
from mikrom_reconcile.control.stores.kept_runs import name_of, packed, repeated, room_of, size_of, unpacked
from mikrom_reconcile.control.stores.sqlite_file import SqliteFile
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.run import RunRecord
from mikrom_reconcile.system import locks

T = TypeVar("T")

_VERSION = 2
_SCHEMA = (
    "CREATE TABLE tokens (scope TEXT PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE placements (project TEXT PRIMARY KEY, placements BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE runs (room TEXT, name TEXT, at REAL, record BLOB, PRIMARY KEY (room, name))",
)


class SqliteStore:
    """A `RunStore` for one machine. Safe to use from many threads, greenlets and processes at once."""

    def __init__(self, path: Path, lock_dir: Path) -> None:
        self._file = SqliteFile(path, schema=_SCHEMA, version=_VERSION)
        self._lock_dir = lock_dir

    def lease(self, scope: str, *, holder: str, ttl_s: float, at_least: int) -> FileLease:
        """Take the lease of a project, with a token of at least `at_least`. Raises BusyError naming the holder.

        `ttl_s` has no meaning here: the kernel gives the lease back when its holder dies.
        """
        del ttl_s
        path = self._lock_dir / f"{quote(scope, safe='')}.lease"
        fd = take_lease_file(path, scope=scope, holder=holder)
        try:
            # without the store, the hosts' own memory of tokens is what makes a run ask for a higher one
            token = self._file.work(lambda db: _next_token(db, scope, at_least), without=max(1, at_least))
        except BaseException:
            locks.give_back(fd)
            raise
        return FileLease(path, fd, token)

    def placements(self, project: str) -> Placements:
        """Where the project's VMs were last known to be; empty when nothing is remembered."""
        query = "SELECT placements FROM placements WHERE project = ?"
        row = self._file.work(lambda db: db.execute(query, (project,)).fetchone(), without=None)
        return (_decoded(row[0], Placements) if row else None) or Placements()

    def remember(self, project: str, placements: Placements) -> None:
        """Replace the placements of a project."""
        row = (project, msgspec.json.encode(placements))
        self._file.work(lambda db: db.execute("INSERT OR REPLACE INTO placements VALUES (?, ?)", row), without=None)

    def save(self, run: RunRecord) -> None:
        """Keep a run as far as it is; those for which its room has no place any more are dropped."""
        room, name = room_of(run), name_of(run)

        def keep(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT record FROM runs WHERE room = ? AND name = ?", (room, name)).fetchone()
            content = packed(repeated(row and row[0], run))
            db.execute("DELETE FROM runs WHERE room = 'going' AND name = ?", (run.run_id,))
            db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", (room, name, run.finished_at.timestamp(), content)
            )
            latest = "SELECT name FROM runs WHERE room = ? ORDER BY at DESC LIMIT ?"
            db.execute(f"DELETE FROM runs WHERE room = ? AND name NOT IN ({latest})", (room, room, size_of(room)))  # noqa: S608

        self._file.work(keep, without=None)

    def runs(self, limit: int) -> tuple[RunRecord, ...]:
        """The latest runs, newest first."""
        query = "SELECT name, record, at FROM runs ORDER BY at DESC LIMIT ?"
        rows: list[tuple[str, bytes, float]] = self._file.work(
            lambda db: db.execute(query, (limit,)).fetchall(), without=[]
        )
        return tuple(unpacked(*row) for row in rows)


def _next_token(db: sqlite3.Connection, scope: str, at_least: int) -> int:
    row = db.execute("SELECT token FROM tokens WHERE scope = ?", (scope,)).fetchone()
    token = max(at_least, row[0] + 1 if row else 1)
    db.execute("INSERT OR REPLACE INTO tokens VALUES (?, ?)", (scope, token))
    return int(token)


def _decoded(encoded: bytes, shape: type[T]) -> T | None:
    """None for what another release wrote in another shape."""
    try:
        return msgspec.json.decode(encoded, type=ready(shape))
    except msgspec.MsgspecError:
        return None
