"""One VMM for one VM: where its files lie, how it is found, proven and ended. Nothing here knows its kind.

A VMM has its VM's lock file, locked, as standard input, from before its first instruction until it is gone. So the
lock says whether one lives, even if its spawner was killed before it could write anything down; and a process that
is the recorded one (pid, start time, boot) *and* has that file as standard input is the VMM: nothing else is ever
signalled. Where nothing was written down, it is the process whose standard input holds the lock: one that only reads
the file is none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.errors import TemporaryError
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.host.drivers.translate_errors import step
from mikrom_reconcile.limits import RECORDS, VMMS
from mikrom_reconcile.system import locks, processes
from mikrom_reconcile.system.files import OddFileError, read_small, write_whole


class Proc(processes.Identity, frozen=True, kw_only=True):
    """What proc.json holds: the process of the VM's last VMM, for which record it was started, by which driver, and how
    much the console held before.
    """

    uid: str
    generation: int
    driver: str = "firecracker"
    console_at: int = 0


@dataclass(frozen=True)
class Places:
    """The files of one VM. The lock lies outside its folder, and goes when the VM is deleted; the socket on a tmpfs."""

    vm: str
    folder: Path
    lock: Path
    run_folder: Path

    @cached_property
    def proc(self) -> Path:
        """Which process the VMM is."""
        return self.folder / "proc.json"

    @cached_property
    def console(self) -> Path:
        """What the guest wrote to its serial port, over all its boots."""
        return self.folder / "console.log"

    @cached_property
    def log(self) -> Path:
        """What the VMM itself said since it was started."""
        return self.folder / "vmm.log"

    @cached_property
    def metrics(self) -> Path:
        """A Firecracker's counters; the last line tells how it ended."""
        return self.folder / "metrics"

    @cached_property
    def pidfile(self) -> Path:
        """What a QEMU makes when it starts and removes when it ends in order."""
        return self.folder / "qemu.pid"

    @cached_property
    def metadata(self) -> Path:
        """The disk with the guest's metadata, for a VMM that has no service for it."""
        return self.folder / "metadata.img"

    @cached_property
    def jail(self) -> Path:
        """All that a jailed VMM sees is somewhere below."""
        return self.folder.parents[1] / "jails" / self.vm

    @cached_property
    def uids(self) -> Path:
        """Which user is which VM's, for all VMs."""
        return self.folder.parents[1] / "uids"

    @cached_property
    def socket(self) -> Path:
        """The VMM's API; a link if the VMM is jailed."""
        return self.run_folder / "api.sock"

    def files(self) -> tuple[Path, ...]:
        """Everything that a driver may have made for the VM, the lock apart."""
        draft = self.proc.with_name(self.proc.name + ".new")
        return (self.socket, self.proc, draft, self.console, self.log, self.metrics, self.pidfile, self.metadata)


class Layout:
    """Where everything lies below the two folders of this host. Symlinks are resolved once, as /proc shows paths."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        self._state_dir = state_dir.resolve()
        self._run_dir = run_dir

    def of(self, vm: str) -> Places:
        """The places of one VM."""
        return _places(self._state_dir, self._run_dir, vm)

    def vms(self) -> Iterator[str]:
        """Names of all VMs that may have a VMM here, sorted: those with a lock file."""
        return iter(sorted(path.stem for path in (self._state_dir / "locks").glob("*.vmm")))

    def folders(self) -> Iterator[str]:
        """Names of all VMs that have files here now: those of deleted VMs are gone."""
        return iter(sorted(path.name for path in (self._state_dir / "vms").glob("*/")))


@lru_cache(RECORDS.cached_paths)
def _places(state_dir: Path, run_dir: Path, vm: str) -> Places:
    return Places(vm=vm, folder=state_dir / "vms" / vm, lock=state_dir / "locks" / f"{vm}.vmm", run_folder=run_dir / vm)


def read_proc(places: Places) -> Proc | None:
    """What was written down about the last VMM; None when nothing was, or nothing that can be read.

    Raises OSError for anything but a file that is not there.
    """
    try:
        content = read_small(places.proc, max_bytes=VMMS.process_file_bytes)
        return None if content is None else msgspec.json.decode(content, type=ready(Proc))
    except (OddFileError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_proc(places: Places, proc: Proc) -> None:
    """Write down which process the VMM is. No VMM survives a power cut, so this need not either."""
    write_whole(places.proc, msgspec.json.encode(proc), durable=False)


def forget_proc(places: Places) -> None:
    """Nothing is written down any more. The file stays: on a full disk there may be no room for another."""
    if places.proc.exists():
        write_whole(places.proc, b"null", durable=False)


def is_vmm(places: Places, identity: processes.Identity) -> bool:
    """Whether this process is a VMM of this VM. One that is being torn down has closed its files and is none."""
    return processes.is_alive(identity) and has_lock_file(places, identity.pid)


def has_lock_file(places: Places, pid: int) -> bool:
    """Whether `pid` has the VM's lock file: by its path, which is quick and true of one that somebody removed, or else
    by the file itself.
    """
    lock = str(places.lock)
    return processes.stdin_of(pid) == lock or processes.has_stdin(pid, lock)


def find(places: Places) -> processes.Identity | None:
    """The live, proven VMM; a Proc if it is the one written down. None: no VMM, or one that is only being spawned."""
    proc = read_proc(places)
    if proc is not None and is_vmm(places, proc):
        return proc
    if locks.is_taken(places.lock):
        for pid in processes.with_locked_stdin(str(places.lock)):
            if (identity := processes.identify(pid)) is not None:
                return identity
    return None


def is_being_spawned(places: Places) -> bool:
    """Whether somebody who is no VMM (`find` found none) holds the lock to become one.

    The threads of a killed VMM hold the lock for moments longer than its first thread lives.
    """
    proc = read_proc(places)
    return not (proc is not None and processes.is_known(proc)) and locks.is_taken(places.lock)


def lingers(places: Places) -> bool:
    """Whether something still stands in a new VMM's way: the lock, or a VMM that has closed its files to die."""
    if locks.is_taken(places.lock):
        return True
    proc = read_proc(places)
    return proc is not None and processes.is_alive(proc) and processes.stdin_of(proc.pid) is None


def end(places: Places, *, grace_s: float, leave: Callable[[processes.Identity], bool], give_up_at: float) -> None:
    """Return once no VMM of this VM lives and its lock is free. Raises TemporaryError at `give_up_at`.

    `leave` asks the VMM to end by itself and says whether it took the request; it then has `grace_s` before it is
    killed.
    """
    with step(places.vm, "ending its VMM"):
        while (vmm := find(places)) is not None or lingers(places):
            if time.monotonic() > give_up_at:
                raise TemporaryError(_who_is_left(places, vmm), vm=places.vm, step="ending its VMM")
            if vmm is None:
                time.sleep(VMMS.poll_s)
                continue
            _end_one(vmm, grace_s=grace_s, leave=leave, give_up_at=give_up_at)
            grace_s = 0.0
    processes.reap()


def kill(vmm: processes.Identity) -> None:
    """End a VMM that was proven, or that this process has just spawned."""
    _end_one(vmm, grace_s=0.0, leave=lambda _: False, give_up_at=time.monotonic() + VMMS.kill_s)


def _end_one(
    vmm: processes.Identity, *, grace_s: float, leave: Callable[[processes.Identity], bool], give_up_at: float
) -> None:
    pidfd = processes.open_pidfd(vmm)
    if pidfd is None:
        return
    try:
        if grace_s > 0 and leave(vmm) and processes.wait_for_end(pidfd, grace_s):
            return
        processes.kill(pidfd)
        processes.wait_for_end(pidfd, give_up_at - time.monotonic())
    finally:
        os.close(pidfd)


def _who_is_left(places: Places, vmm: processes.Identity | None) -> str:
    leaving = vmm or read_proc(places)
    if leaving is not None and processes.is_alive(leaving):
        return f"pid {leaving.pid} is dying and still not gone; /proc/{leaving.pid}/stack says what it waits for"
    return f"{places.lock} is held by a process that cannot be found; see who with `fuser {places.lock}`"
