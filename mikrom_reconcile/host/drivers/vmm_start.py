"""The steps from nothing to a VMM that waits for its orders, in an order that survives a kill between any two of them.

The lock is the VMM's before its first instruction, the VMM is written down before it is configured, and only the
last request boots the guest. So whatever is left of a killed start is found through the lock, and has no guest
that could have done anything. Nothing here knows the VMM's kind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from mikrom_reconcile.core.model.errors import TemporaryError
from mikrom_reconcile.host.drivers.jail import Jail, furnish, inmate, sweep
from mikrom_reconcile.host.drivers.translate_errors import NoAnswerError, UnreachableError, step
from mikrom_reconcile.host.drivers.vmm import Places, Proc, forget_proc, kill, write_proc
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.limits import VMMS
from mikrom_reconcile.system import locks, processes
from mikrom_reconcile.system.folders import make_folder
from mikrom_reconcile.system.tails import tail

T = TypeVar("T")


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """How a VMM is started. `driver` is its driver's name, `program` its own, `output` takes its standard output and
    error, and the files `fresh` have to be there and empty before. With a `jail`, it starts a jailer that leaves it.
    """

    driver: str
    program: str
    argv: tuple[str, ...]
    output: Path
    fresh: tuple[Path, ...]
    jail: Jail | None = None


def spawn(command: Command, record: VMRecord, places: Places) -> Proc:
    """A VMM that is written down and waits to be configured. On failure none is left."""
    doing = f"starting {command.program}"
    with step(record.vm, doing):
        lock = _locked(places, doing)
        try:
            clear(places)
            console_at = _size_of(places.console)
            identity = _spawn_process(command, places, lock, doing)
            return _written_down(command.driver, record, places, identity, console_at)
        except BaseException:
            with suppress(OSError):  # the failure that led here is the one to tell
                sweep(places)
            raise
        finally:
            os.close(lock)  # only this copy: the VMM keeps its own


def connected(connect: Callable[[], T], vmm: Proc, give_up_at: float) -> T:
    """What `connect` returns, as soon as the VMM listens."""
    while True:
        try:
            return connect()
        except UnreachableError as error:
            if time.monotonic() > give_up_at or not processes.is_alive(vmm):
                raise NoAnswerError(f"it never listened: {error}") from error
        time.sleep(VMMS.poll_s)


@contextmanager
def last_words_of(program: str, places: Places, vmm: Proc) -> Iterator[None]:
    """If the VMM has died when a TemporaryError is raised inside, what it said is the error to tell."""
    try:
        yield
    except TemporaryError as error:
        if not _died(vmm):
            raise
        raise TemporaryError(_last_words(program, places), vm=places.vm, step=error.step) from error


def abandon(places: Places, vmm: Proc) -> None:
    """End a VMM that did not come up and remove what it left, unless somebody has already started another."""
    with suppress(OSError):  # the failure that led here is the one to tell
        kill(vmm)
        processes.reap()
        if (lock := locks.open_taken(places.lock)) is not None:
            try:
                clear(places)
            finally:
                os.close(lock)


def clear(places: Places) -> None:
    """Leave nothing that speaks of an earlier VMM, but what it logged. The caller holds the lock."""
    for path in (places.socket, places.pidfile):
        path.unlink(missing_ok=True)
    forget_proc(places)
    sweep(places)


def _locked(places: Places, doing: str) -> int:
    make_folder(places.lock.parent)
    if (lock := locks.open_taken(places.lock)) is not None:
        return lock
    raise TemporaryError("somebody else is starting it at this moment", vm=places.vm, step=doing)


def _spawn_process(command: Command, places: Places, lock: int, doing: str) -> processes.Identity:
    for folder in (places.folder, places.run_folder):
        make_folder(folder)
    for path in command.fresh:
        os.close(_opened(path, os.O_CREAT | os.O_TRUNC))
    os.close(_opened(places.console, os.O_CREAT))
    if command.jail is not None:
        furnish(command.jail, places)
    output = _opened(command.output, os.O_APPEND)
    try:
        pid = processes.spawn(command.argv, stdin=lock, output=output)
    finally:
        os.close(output)
    found = processes.identify(pid) if command.jail is None else inmate(pid, command.jail, places)
    if found is None:
        raise TemporaryError(_last_words(command.program, places), vm=places.vm, step=doing)
    return found


def _opened(path: Path, flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def _size_of(console: Path) -> int:
    try:
        return console.stat().st_size
    except FileNotFoundError:
        return 0


def _written_down(driver: str, record: VMRecord, places: Places, identity: processes.Identity, console_at: int) -> Proc:
    proc = Proc(
        pid=identity.pid,
        starttime=identity.starttime,
        boot_id=identity.boot_id,
        uid=record.uid,
        generation=record.generation,
        driver=driver,
        console_at=console_at,
    )
    try:
        write_proc(places, proc)
    except BaseException:
        kill(proc)
        raise
    return proc


def _died(vmm: Proc) -> bool:
    """Whether the VMM is gone, or just closing its files to go."""
    pidfd = processes.open_pidfd(vmm)
    if pidfd is None:
        return True
    try:
        return processes.wait_for_end(pidfd, VMMS.death_s)
    finally:
        os.close(pidfd)


def _last_words(program: str, places: Places) -> str:
    """What a VMM said before it ended by itself: in its log or, if that is not open yet, on standard error."""
    for path in (places.log, places.console):
        lines = tail(path, VMMS.error_tail_bytes).decode(errors="replace").split("\n")
        words = [line for line in lines if line.strip()]
        if words:
            return f"{program} ended by itself, saying: {words[-1].strip()}"
    return f"{program} ended by itself without a word"
