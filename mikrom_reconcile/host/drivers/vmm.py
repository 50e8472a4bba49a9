"""The handle of one VM's VMM: found, proven, started, talked to and ended. Nothing here knows its kind.

A VMM has its VM's lock file, locked, as standard input, from before its first instruction until it is gone. So the
lock says whether one lives, and a process that is the recorded one (pid, start time, boot) *and* has that file as
standard input is the VMM: nothing else is ever signalled. Where nothing was written down, it is the process whose
standard input holds the lock. A start survives a kill between any two of its steps: the VMM is written down before it
is configured, and only the last request boots the guest.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import Stray
from mikrom_reconcile.host.drivers.connection import Connection
from mikrom_reconcile.host.drivers.jail import Jail, VMPaths, remove_jail
from mikrom_reconcile.host.errors import VMMError, translate_errors
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.system import locks, processes
from mikrom_reconcile.system.files import descriptor, make_folder, read_json, tail, write_over
from mikrom_reconcile.times_and_sizes import RECORDS, VMMS

C = TypeVar("C", bound=Connection)


class StateLayout:
    """Where everything lies below the two folders of this host. Symlinks are resolved once, as /proc shows paths."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        self._state_dir = state_dir.resolve()
        self._none_moved_at_s = -VMMS.moved_search_s
        self.of = lru_cache(RECORDS.cached_paths)(lambda vm: VMPaths(self._state_dir, run_dir, vm))

    def vms(self) -> list[str]:
        """Names of all VMs that may have a VMM here, sorted: those with a lock file."""
        return sorted(path.stem for path in (self._state_dir / "locks").glob("*.vmm"))

    def folders(self) -> list[str]:
        """Names of all VMs that have files here now: those of deleted VMs are gone."""
        return sorted(path.name for path in (self._state_dir / "vms").glob("*/"))

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


class VMMProcess(processes.Identity, frozen=True, kw_only=True):
    """What proc.json holds: the process of the VM's last VMM, for which record it was started, by which driver, and how
    much the console held before. One that somebody started by hand has a `socket` elsewhere, and not the lock.
    """

    uid: str
    generation: int
    driver: str = "firecracker"
    console_at: int = 0
    socket: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """How a VMM is started. `output` takes what it prints. With a `jail`, it starts a jailer that leaves it there."""

    argv: tuple[str, ...]
    output: Path
    jail: Jail | None = None


class VMM:
    """The VMM of one VM, which may not live. `program` is what it is called, `driver` who may start and judge it."""

    def __init__(self, paths: VMPaths, *, driver: str, program: str) -> None:
        self.paths, self.vm = paths, paths.vm
        self._driver, self._program = driver, program
        self._process: processes.Identity | None = None

    @property
    def process(self) -> processes.Identity:
        """The process that was found or started; `find` or `spawn` comes first."""
        if self._process is None:
            raise LookupError(f"no VMM of {self.vm} was found")
        return self._process

    # ---- finding -----------------------------------------------------------------------------------------------------

    def find_any(self) -> processes.Identity | None:
        """The live, proven VMM; a VMMProcess if it is the one written down. None: no VMM, or one just being spawned."""
        self._process = None
        last = self.last_process()
        if last is not None and self.is_proven(last):
            self._process = last
        elif locks.is_taken(self.paths.lock):
            pids = processes.with_locked_stdin(str(self.paths.lock))
            self._process = next((found for pid in pids if (found := processes.identify(pid))), None)
        return self._process

    def find(self) -> processes.Identity | None:
        """The same. Raises PermanentError if another driver started it: it is not ours to judge or replace."""
        found = self.find_any()
        if isinstance(found, VMMProcess) and found.driver != self._driver:
            why = f"its VMM (pid {found.pid}) was started by the driver {found.driver} and this is {self._driver}"
            raise PermanentError(f"{why}: stop it with MIKROM_DRIVER={found.driver}, or go on with that driver")
        return found

    def is_proven(self, identity: processes.Identity) -> bool:
        """Whether a process is the VMM. One that is being torn down has closed its files and is none."""
        by_hand = isinstance(identity, VMMProcess) and identity.socket  # its arguments are gone as soon as its files
        is_whole = processes.arguments if by_hand else self.has_lock_file
        return processes.is_alive(identity) and bool(is_whole(identity.pid))

    def has_lock_file(self, pid: int) -> bool:
        """Whether `pid` has the VM's lock file: by its path, which is quick and true of one that somebody removed, or
        else by the file itself.
        """
        lock = str(self.paths.lock)
        return processes.stdin_of(pid) == lock or processes.has_stdin(pid, lock)

    def is_being_spawned(self) -> bool:
        """Whether somebody who is no VMM (`find` found none) holds the lock to become one. The threads of a killed VMM
        hold the lock for moments longer than its first thread lives.
        """
        last = self.last_process()
        return not (last is not None and processes.is_known(last)) and locks.is_taken(self.paths.lock)

    def last_process(self) -> VMMProcess | None:
        """What was written down about the last VMM. Raises OSError for anything but a file that is not there."""
        return read_json(self.paths.process, VMMProcess, max_bytes=VMMS.process_file_bytes)

    # ---- starting ----------------------------------------------------------------------------------------------------

    @contextmanager
    def spawned(self, command: Command, record: VMRecord) -> Iterator[None]:
        """Start a VMM that is written down, to be configured inside the block. On failure none is left. If it has died
        when a TemporaryError is raised inside, what it said is the error to tell.
        """
        self._process = None
        try:
            with translate_errors(self.vm, f"starting {self._program}"):
                self._spawn(command, record)
            try:
                yield
            except TemporaryError as error:
                if not processes.wait_for_end(self.process, VMMS.death_s):
                    raise
                raise TemporaryError(self._last_words(), vm=self.vm, step=error.step) from error
        except BaseException:
            self.kill_and_clean()
            raise

    def _spawn(self, command: Command, record: VMRecord) -> None:
        if (lock := locks.open_taken(self.paths.lock)) is None:
            raise TemporaryError("somebody else is starting it at this moment")
        try:
            self._clear()
            console_at = self._make_files(command)
            with descriptor(command.output, os.O_WRONLY | os.O_NOFOLLOW | os.O_APPEND) as output:
                pid = processes.spawn(command.argv, stdin=lock, output=output)
            self._process = processes.identify(pid) if command.jail is None else command.jail.await_jailed_vmm(pid)
            if self._process is None:
                raise TemporaryError(self._last_words())
            self.take(self.process, record, console_at=console_at)
            self.write_down()
        finally:
            os.close(lock)  # only this copy: the VMM keeps its own

    def _clear(self) -> None:
        """Leave nothing that speaks of an earlier VMM, but what it logged. The caller holds the lock."""
        for path in (self.paths.socket, self.paths.vsock, self.paths.pidfile):
            path.unlink(missing_ok=True)
        if self.paths.process.exists():  # the file stays: on a full disk there may be no room for another
            write_over(self.paths.process, b"null")
        remove_jail(self.paths)

    def _make_files(self, command: Command) -> int:
        """Make what the VMM does not make itself; the size of the console so far."""
        for folder in (self.paths.folder, self.paths.run_folder):
            make_folder(folder)
        for path in (self.paths.log, self.paths.metrics):  # a Firecracker makes neither
            write_over(path, b"")
        if command.jail is not None:
            command.jail.populate()
        with descriptor(self.paths.console, os.O_WRONLY | os.O_NOFOLLOW | os.O_CREAT) as console:
            return os.fstat(console).st_size

    def take(self, process: processes.Identity, record: VMRecord, **more: Any) -> None:
        """Have a process as the VMM for this record, before it is written down."""
        named = msgspec.structs.asdict(process) | {"uid": record.uid, "generation": record.generation}
        self._process = VMMProcess(**named, driver=self._driver, **more)

    def write_down(self) -> None:
        """No VMM survives a power cut, so this need not either."""
        write_over(self.paths.process, msgspec.json.encode(self.process))

    def kill_and_clean(self) -> None:
        """End a VMM that did not come up and remove what it left, unless somebody has already started another."""
        with suppress(OSError):  # the failure that led here is the one to tell
            if self._process is not None:
                self._kill()
            processes.reap()
            # the kernel may free the lock of a dead QEMU a moment after it, with what its io_uring waited for
            until = time.monotonic() + VMMS.leave_s
            with locks.held(self.paths.lock, until=until, poll_s=VMMS.poll_s) as is_ours:
                if is_ours:
                    self._clear()

    def _last_words(self) -> str:
        """What a VMM said before it ended by itself: in its log or, if that is not open yet, on standard error."""
        for path in (self.paths.log, self.paths.console):
            lines = tail(path, VMMS.error_tail_bytes).content.decode(errors="replace").split("\n")
            if words := [line for line in lines if line.strip()]:
                return f"{self._program} ended by itself, saying: {words[-1].strip()}"
        return f"{self._program} ended by itself without a word"

    @property
    def adopted(self) -> str:
        """The API socket of a VMM that somebody started by hand; "" of any other."""
        return self._process.socket if isinstance(self._process, VMMProcess) else ""

    # ---- talking -----------------------------------------------------------------------------------------------------

    def connect(self, protocol: type[C], timeout_s: float) -> C:
        """A connection to the VMM. Raises UnreachableError, NoAnswerError, OSError."""
        path = self.adopted or str(self.paths.socket)
        return protocol(path, pid=self.process.pid, give_up_at=time.monotonic() + timeout_s)

    # ---- ending ------------------------------------------------------------------------------------------------------

    def end(self, *, give_up_at: float, grace_s: float = 0.0, ask_to_leave: Callable[[], None] | None = None) -> None:
        """Return once no VMM of this VM lives and its lock is free. Raises TemporaryError at `give_up_at`. A VMM that
        takes the request `ask_to_leave` has `grace_s` to end by itself before it is killed, whichever driver started
        it.
        """
        with translate_errors(self.vm, "ending its VMM"):
            while (found := self.find_any()) is not None or self._still_blocking():
                if time.monotonic() > give_up_at:
                    raise TemporaryError(self._who_is_left())
                if found is None:
                    time.sleep(VMMS.poll_s)
                    continue
                if not (ask_to_leave and grace_s > 0 and self._leaves(ask_to_leave, grace_s)):
                    self._kill(give_up_at - time.monotonic())
                grace_s = 0.0
        processes.reap()

    def _leaves(self, ask_to_leave: Callable[[], None], grace_s: float) -> bool:
        try:
            ask_to_leave()
        except VMMError:
            return False
        return processes.wait_for_end(self.process, grace_s)

    def _kill(self, timeout_s: float = VMMS.kill_s) -> None:
        processes.kill(self.process)
        processes.wait_for_end(self.process, timeout_s)

    def _still_blocking(self) -> bool:
        """Whether something still stands in a new VMM's way: the lock, or a VMM that has closed its files to die."""
        if locks.is_taken(self.paths.lock):
            return True
        last = self.last_process()
        return last is not None and processes.is_alive(last) and processes.stdin_of(last.pid) is None

    def _who_is_left(self) -> str:
        leaving = self._process or self.last_process()
        if leaving is not None and processes.is_alive(leaving):
            return f"pid {leaving.pid} is dying and still not gone; /proc/{leaving.pid}/stack says what it waits for"
        lock = self.paths.lock
        return f"{lock} is held by a process that cannot be found; see who with `fuser {lock}`"
