"""VMMs of this host whose state folder was moved away or removed under them: nothing is made beside them.

A file marks a state folder, and the run folder remembers which one lay at its path. While the two agree, nothing is
looked for. Else every process is: a VMM has the lock file of its VM as standard input, wherever that is now.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from mikrom_reconcile.core.model.observed import Stray
from mikrom_reconcile.limits import VMMS
from mikrom_reconcile.system import locks, processes
from mikrom_reconcile.system.files import OddFileError, read_small, write_whole
from mikrom_reconcile.system.folders import make_folder

MARK = "locks/mark"
"""What tells a state folder from another at the same path; it moves along, and that of a restored backup is another."""


class EarlierVMMs:
    """Those that were started with the same paths as `state_dir`, which is resolved, and `run_dir`."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        self._state_dir = state_dir
        self._run_dir = run_dir
        self._mark = state_dir / MARK
        self._remembered = run_dir / f"state-{blake2b(bytes(state_dir), digest_size=8).hexdigest()}"

    def found(self) -> dict[Path, tuple[Stray, ...]]:
        """The VMMs that live, by where their state folder is now. Raises OSError."""
        before = _read(self._remembered)
        if before is not None and before == _marked(self._mark):
            return {}
        found: dict[Path, tuple[Stray, ...]] = {}
        for state_dir, stray in self._look(before):
            found[state_dir] = (*found.get(state_dir, ()), stray)
        return found

    def why_not(self) -> str | None:
        """Why nothing may be started here, None if nothing speaks against it. Raises OSError."""
        for where, vmms in self.found().items():
            is_moved = where != self._state_dir and where.exists()
            now = f"is {where} now: move it back" if is_moved else "was removed: restore it"
            first = f"{vmms[0].vm} (pid {vmms[0].pid})"
            return (
                f"{len(vmms)} VMMs, such as {first}, run with a state folder that {now}, or end them, before more start"
            )
        return None

    def remember(self) -> None:
        """Nobody is left of an earlier one: from now on it is this folder. On a full disk it is looked for again."""
        with suppress(OSError):
            os.close(locks.open_lock_file(self._mark))  # made where missing
            if (own := _marked(self._mark)) and own != _read(self._remembered):
                make_folder(self._run_dir)
                write_whole(self._remembered, own, durable=False)

    def _look(self, before: bytes | None) -> Iterator[tuple[Path, Stray]]:
        for name in os.listdir("/proc"):  # noqa: PTH208 - a Path for each process costs more than the rest
            lock = Path(processes.stdin_of(int(name)) or "") if name.isdigit() else Path()
            state_dir = lock.parent.parent
            if not (lock.suffix == ".vmm" and lock.parent.name == "locks" and processes.holds_lock(int(name))):
                continue
            if self._is_ours(int(name), lock) or (before and _marked(state_dir / MARK) == before):
                yield state_dir, Stray(vm=lock.stem, pid=int(name))

    def _is_ours(self, pid: int, lock: Path) -> bool:
        """Whether its file had our path and is no more the one there, or its socket lies in our run folder."""
        if processes.has_stdin(pid, str(self._state_dir / "locks" / lock.name)):
            return False
        in_run = f"{self._run_dir}/{lock.stem}/"
        return lock.parent.parent == self._state_dir or any(in_run in word for word in processes.arguments(pid))


def _marked(path: Path) -> bytes | None:
    """The very file, which no copy is: numbers of files are used again, so with the time of its last change."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return f"{found.st_ino} {found.st_ctime_ns}".encode()


def _read(path: Path) -> bytes | None:
    try:
        return read_small(path, max_bytes=VMMS.mark_bytes)
    except OddFileError:
        return None
