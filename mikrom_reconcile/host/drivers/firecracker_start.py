"""The steps from nothing to a booted Firecracker, in an order that survives a kill between any two of them.

The lock is the VMM's before its first instruction, the VMM is written down before it is configured, and only the
last request boots the guest. So whatever is left of a killed start is found through the lock, and has no guest
that could have done anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from mikrom_reconcile import locks
from mikrom_reconcile.core.errors import TemporaryError
from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.folders import make_folder
from mikrom_reconcile.host import process
from mikrom_reconcile.host.drivers.failures import step
from mikrom_reconcile.host.drivers.firecracker_api import Api, NoAnswerError, UnreachableError
from mikrom_reconcile.host.drivers.firecracker_end import tail
from mikrom_reconcile.host.drivers.vmm import POLL_S, Places, Proc, kill, write_proc
from mikrom_reconcile.host.ports import VMRecord

DEATH_S = 0.1
"""From closing its API socket to its death a VMM takes milliseconds."""

_LAST_WORDS_BYTES = 500

Request = tuple[str, dict[str, object], str]
"""Path, content, and what is being done, in words."""


def spawn(binary: Path, record: VMRecord, places: Places) -> Proc:
    """A Firecracker that is written down and waits to be configured. On failure none is left."""
    with step(record.vm, "starting Firecracker"):
        lock = _locked(places)
        try:
            clear(places)
            pid = _spawn_process(binary, places, lock)
            identity = process.identify(pid)
            if identity is None:
                raise TemporaryError(_last_words(places), vm=record.vm, step="starting Firecracker")
            return _written_down(record, places, identity)
        finally:
            os.close(lock)  # only this copy: Firecracker keeps its own


def boot(record: VMRecord, places: Places, vmm: Proc, kernel: Path, *, give_up_at: float) -> None:
    """Configure a spawned Firecracker and start its guest."""
    try:
        with step(record.vm, "connecting to Firecracker"):
            api = _connected(places, vmm, give_up_at)
        with api:
            for path, content, doing in _requests(record.spec, kernel):
                with step(record.vm, doing):
                    api.put(path, content)
    except TemporaryError as error:
        if not _died(vmm):
            raise
        raise TemporaryError(_last_words(places), vm=record.vm, step=error.step) from error


def abandon(places: Places, vmm: Proc) -> None:
    """End a VMM that did not come up and remove what it left, unless somebody has already started another."""
    with suppress(OSError):  # the failure that led here is the one to tell
        kill(vmm)
        process.reap()
        lock = locks.open_lock_file(places.lock)
        try:
            if locks.take(lock):
                clear(places)
        finally:
            os.close(lock)


def clear(places: Places) -> None:
    """Leave nothing that speaks of an earlier VMM, but what it logged. The caller holds the lock."""
    places.socket.unlink(missing_ok=True)
    places.proc.unlink(missing_ok=True)


def _requests(spec: VMSpec, kernel: Path) -> Iterator[Request]:
    machine: dict[str, object] = msgspec.to_builtins(spec.machine)
    if spec.machine.cpu_template is None:
        del machine["cpu_template"]
    yield "/machine-config", machine, "configuring the machine"
    boot_source: dict[str, object] = {"kernel_image_path": str(kernel), "boot_args": spec.boot_args}
    yield "/boot-source", boot_source, "configuring the boot source"
    yield "/actions", {"action_type": "InstanceStart"}, "starting the guest"


def _locked(places: Places) -> int:
    make_folder(places.lock.parent)
    if (lock := locks.open_taken(places.lock)) is not None:
        return lock
    raise TemporaryError("somebody else is starting it at this moment", vm=places.vm, step="starting Firecracker")


def _spawn_process(binary: Path, places: Places, lock: int) -> int:
    for folder in (places.folder, places.run_folder):
        make_folder(folder)
    for path in (places.log, places.metrics):  # Firecracker does not make them
        os.close(_opened(path, os.O_CREAT | os.O_TRUNC))
    console = _opened(places.console, os.O_CREAT | os.O_APPEND)
    argv = (
        *(str(binary), "--id", places.vm, "--api-sock", str(places.socket)),
        *("--log-path", str(places.log), "--level", "Warn"),  # a level lower it logs each request, so each observation
        *("--metrics-path", str(places.metrics)),
    )
    try:
        return process.spawn(argv, stdin=lock, output=console)
    finally:
        os.close(console)


def _opened(path: Path, flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def _written_down(record: VMRecord, places: Places, identity: process.Identity) -> Proc:
    proc = Proc(
        pid=identity.pid,
        starttime=identity.starttime,
        boot_id=identity.boot_id,
        uid=record.uid,
        generation=record.generation,
    )
    try:
        write_proc(places, proc)
    except BaseException:
        kill(proc)
        raise
    return proc


def _connected(places: Places, vmm: Proc, give_up_at: float) -> Api:
    """A connection, as soon as Firecracker listens."""
    while True:
        try:
            return Api(str(places.socket), pid=vmm.pid, give_up_at=give_up_at)
        except UnreachableError as error:
            if time.monotonic() > give_up_at or not process.is_alive(vmm):
                raise NoAnswerError(f"it never listened: {error}") from error
        time.sleep(POLL_S)


def _died(vmm: Proc) -> bool:
    """Whether the VMM is gone, or just closing its files to go."""
    pidfd = process.open_pidfd(vmm)
    if pidfd is None:
        return True
    try:
        return process.wait_for_end(pidfd, DEATH_S)
    finally:
        os.close(pidfd)


def _last_words(places: Places) -> str:
    """What Firecracker said before it ended by itself. It complains in its log or, before that is open, on stderr."""
    for path in (places.log, places.console):
        lines = tail(path, _LAST_WORDS_BYTES).decode(errors="replace").split("\n")
        words = [line for line in lines if line.strip()]
        if words:
            return f"Firecracker ended by itself, saying: {words[-1].strip()}"
    return "Firecracker ended by itself without a word"
