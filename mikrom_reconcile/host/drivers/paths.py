"""Where the files of a host's VMs lie, and the VMMs of this host whose state folder was moved away under them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from mikrom_reconcile.core.model.observed import Stray
from mikrom_reconcile.system import processes
from mikrom_reconcile.times_and_sizes import RECORDS, VMMS


class VMPaths:
    """The files of one VM. The lock lies outside its folder, and goes when the VM is deleted; the socket on a tmpfs."""

    def __init__(self, state_dir: Path, run_dir: Path, vm: str) -> None:
        self.vm = vm
        self.folder = state_dir / "vms" / vm
        self.lock = state_dir / "locks" / f"{vm}.vmm"
        self.run_folder = run_dir / vm
        self.socket = run_dir / vm / "api.sock"  # a link if the VMM is jailed
        self.process = self.folder / "proc.json"  # which process the VMM is
        self.console = self.folder / "console.log"  # what the guest wrote to its serial port, over all its boots
        self.log = self.folder / "vmm.log"  # what the VMM itself said since it was started
        self.metrics = self.folder / "metrics"  # a Firecracker's counters; the last line tells how it ended
        self.pidfile = self.folder / "qemu.pid"  # made by a QEMU that starts, removed by one that ends in order
        self.metadata = self.folder / "metadata.img"  # the guest's metadata, for a VMM that has no service for it
        self.jail = state_dir / "jails" / vm  # all that a jailed VMM sees is somewhere below
        self.uids = state_dir / "uids"  # which user is which VM's, for all VMs
        self.jailed_socket = f"/{blake2b(bytes(run_dir), digest_size=8).hexdigest()}.sock"
        """The API socket as a jailed VMM sees it: its command line tells which run folder it belongs to."""

    def files(self) -> tuple[Path, ...]:
        """Everything that a driver may have made for the VM, the lock apart."""
        draft = self.process.with_name(self.process.name + ".new")
        return (self.socket, self.process, draft, self.console, self.log, self.metrics, self.pidfile, self.metadata)


class StateLayout:
    """Where everything lies below the two folders of this host. Symlinks are resolved once, as /proc shows paths."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        self._state_dir = state_dir.resolve()
        self._run_dir = run_dir
        self._none_moved_at_s = -VMMS.moved_search_s

    def of(self, vm: str) -> VMPaths:
        """The paths of one VM."""
        return _paths(self._state_dir, self._run_dir, vm)

    def vms(self) -> Iterator[str]:
        """Names of all VMs that may have a VMM here, sorted: those with a lock file."""
        return iter(sorted(path.stem for path in (self._state_dir / "locks").glob("*.vmm")))

    def folders(self) -> Iterator[str]:
        """Names of all VMs that have files here now: those of deleted VMs are gone."""
        return iter(sorted(path.name for path in (self._state_dir / "vms").glob("*/")))

    def moved_vmms(self) -> list[tuple[Path, Stray]]:
        """VMMs that live and were started with these two folders, and where their state folder is now. Raises OSError.

        A VMM has the lock file of its VM as standard input, wherever that is now.
        """
        found = []
        for pid in processes.pids():
            if (name := processes.stdin_of(pid) or "").endswith(".vmm"):
                lock = Path(name)
                if self._is_moved(pid, lock) and processes.holds_lock(pid):
                    found.append((lock.parent.parent, Stray(vm=lock.stem, pid=pid)))
        return found

    def _is_moved(self, pid: int, lock: Path) -> bool:
        """Whether its file has our path and is not the one there now, or its socket lies in our run folder."""
        paths = self.of(lock.stem)
        if processes.has_stdin(pid, str(paths.lock)):
            return False
        sockets = (str(paths.socket), paths.jailed_socket)
        return lock == paths.lock or any(socket in word for word in processes.arguments(pid) for socket in sockets)

    def why_not_start(self) -> str | None:
        """Why nothing may be started here: VMMs run with a state folder that is gone. Raises OSError."""
        if time.monotonic() < self._none_moved_at_s + VMMS.moved_search_s:
            return None
        if not (found := self.moved_vmms()):
            self._none_moved_at_s = time.monotonic()
            return None
        where, first = found[0]
        is_moved = where != self._state_dir and where.exists()
        now = f"is {where} now: move it back" if is_moved else "was removed: restore it"
        vmms = f"{len(found)} VMMs, such as {first.vm} (pid {first.pid}),"
        return f"{vmms} run with a state folder that {now}, or end them, before more start"


@lru_cache(RECORDS.cached_paths)
def _paths(state_dir: Path, run_dir: Path, vm: str) -> VMPaths:
    return VMPaths(state_dir, run_dir, vm)
