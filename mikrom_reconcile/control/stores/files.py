"""The embedded store: files for placements and runs, lock files for leases and tokens. A run goes on without it."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

from mikrom_reconcile.control import run_log
from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.core.model import errors, plan
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.files import OddFileError, make_folder, read_small, write_whole
from mikrom_reconcile.times_and_sizes import RUNS

_log = logging.getLogger(__name__)


class FileLease:
    """An OFD lock on a file with token and holder. It is lost once released, or if its file is replaced."""

    def __init__(self, path: Path, fd: int, token: int, holder: str) -> None:
        self._path = path
        self._fd: int | None = fd
        self.token = token
        self._write(fd, f"{holder} (pid {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC)")

    def held(self) -> bool:
        if self._fd is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:
            return False

    def release(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            self._write(fd, "")  # the next that fails to take it must not read an old name
            locks.give_back(fd)

    def _write(self, fd: int, holder: str) -> None:
        with suppress(OSError):  # a full disk: the lock is the lease, and hosts remember tokens, too
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{self.token} {holder}".encode(), 0)


class FileStore(RunStore):
    """A `RunStore` for one machine. Safe to use from many threads and processes at once."""

    def __init__(self, folder: Path, lock_dir: Path) -> None:
        self._folder = folder
        self._lock_dir = lock_dir
        self._was_told = False

    def lease(self, scope: str, *, holder: str, ttl_s: float, at_least: int) -> FileLease:
        del ttl_s  # the kernel gives the lease back when its holder dies
        path = self._lock_dir / f"{quote(scope, safe='')}.lease"
        try:
            fd = locks.open_taken(path)
            other = "" if fd is not None else path.read_text(errors="replace").partition(" ")[2]
        except OSError as error:
            raise errors.SetupError(f"{path}: {error.strerror}; the state folder must be writable") from error
        if fd is None:
            other = other or "another process"
            raise errors.BusyError(f"project {scope} is being changed by {other}; wait for that run to end")
        before = os.pread(fd, 15, 0).partition(b" ")[0]
        return FileLease(path, fd, max(1, at_least, int(before) + 1 if before.isdigit() else 1), holder)

    def save(self, run: plan.RunRecord) -> None:
        room, name = run_log.room_of(run), run_log.name_of(run)
        path = self._path(f"runs/{quote(room)}", name)
        begun, at = run.started_at.timestamp(), run.finished_at.timestamp()
        draft = self._path("runs/going", run.run_id)  # it goes from room to room in one step, and is never seen twice
        with self._done_without():
            make_folder(path.parent)
            before = None if name == run.run_id else self._read(path)
            _write(draft, run_log.packed(run, before))
            os.utime(draft, (at, at))
            draft.replace(path)
            left_by_the_killed = (path for path in draft.parent.glob("*.new") if _time_of(path) < begun)
            too_many = _latest_first(path.parent.iterdir())[run_log.ROOM.get(room, RUNS.kept_per_host) :]
            for old in (*too_many, *left_by_the_killed):
                old.unlink(missing_ok=True)

    def runs(self, limit: int) -> tuple[plan.RunRecord, ...]:
        paths: list[Path] = []
        with self._done_without(), suppress(FileNotFoundError):  # there was no run yet
            paths = [path for room in (self._folder / "runs").iterdir() for path in room.iterdir()]
        found = ((path, self._read(path)) for path in _latest_first(paths)[:limit])
        return tuple(run_log.unpacked(unquote(path.name), kept, _time_of(path)) for path, kept in found if kept)

    def put(self, shelf: str, name: str, content: bytes | None) -> None:
        with self._done_without():
            if content is None:
                self._path(shelf, name).unlink(missing_ok=True)
            else:
                _write(self._path(shelf, name), content)

    def get(self, shelf: str, name: str) -> bytes | None:
        return self._read(self._path(shelf, name))

    def shelf(self, shelf: str) -> list[bytes]:
        found = (self._read(path) for path in (self._folder / shelf).glob("*") if path.suffix != ".new")
        return [content for content in found if content is not None]

    def _path(self, folder: str, name: str) -> Path:
        return self._folder / folder / quote(name, safe="")

    def _read(self, path: Path) -> bytes | None:
        try:
            return read_small(path, max_bytes=RUNS.record_bytes)
        except (OSError, OddFileError):
            return None

    @contextmanager
    def _done_without(self) -> Iterator[None]:
        """Goes on where the store cannot be used, and says so once."""
        try:
            yield
        except OSError as error:
            if not self._was_told:
                meant = "going on without; no VM is concerned, but history will not know of it"
                _log.warning("%s cannot be used (%s): %s", self._folder, error.strerror, meant)
            self._was_told = True


def _write(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    write_whole(path, content, durable=False)


def _latest_first(paths: Iterable[Path]) -> list[Path]:
    """The files by their times, without drafts of one that is just being written."""
    return sorted((path for path in paths if path.suffix != ".new"), key=_time_of, reverse=True)


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process dropped it
        return 0.0
