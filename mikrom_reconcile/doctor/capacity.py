"""Whether this machine has room for its microVMs: disk, memory, descriptors, threads."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.observed import WANTS_VMM
from mikrom_reconcile.doctor import Look, broken, nearest_of, note, ok
from mikrom_reconcile.host.drivers.select import choice_of
from mikrom_reconcile.host.observe import capacity
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.output.doctor import Check
from mikrom_reconcile.output.text import counted
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import DOCTOR


def _user(_settings: Settings) -> Check:
    uid = os.geteuid()
    return ok("root" if uid == 0 else f"uid {uid}, not root: enough for all that needs no tap and no jail")


def _cgroups(_settings: Settings) -> Check:
    version = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    return ok(f"{version}; VMMs without a jail stay in the cgroup of the process that starts them")


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


def _records(settings: Settings) -> None:
    """Broken where they cannot be listed; what they hold is a matter of the next checks."""
    Records(settings.state_dir).list()


def _wanted(settings: Settings) -> list[VMSpec]:
    """The VMs that this host is to keep running."""
    with suppress(SetupError):  # another check reports it
        found = Records(settings.state_dir).list()
        return [record.spec for record in found if isinstance(record, VMRecord) and record.state in WANTS_VMM]
    return []


def _memory(settings: Settings) -> Check:
    specs, have_mib = _wanted(settings), capacity().mem_size_mib
    promised_mib = sum(spec.machine.mem_size_mib for spec in specs)
    with suppress(SetupError):  # another check reports it
        promised_mib = sum(map(wiring.make_driver(settings, choice_of(settings)).memory_mib, specs))
    available_mib = _number(Path("/proc/meminfo"), after="MemAvailable:") >> 10
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


def _threads(_settings: Settings) -> Check:
    """How many more VMs of one vCPU the narrowest limit on threads lets start."""
    running = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[2])
    rooms = {
        name: _number(Path(f"/proc/sys/kernel/{name.removeprefix('kernel.')}")) - running
        for name in ("kernel.pid_max", "kernel.threads-max")
    }
    if (group := _own_cgroup()) is not None:
        limit, used = group
        rooms["pids.max of this cgroup"] = limit - used
    user_limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() != 0 and user_limit != resource.RLIM_INFINITY:
        rooms["ulimit -u"] = user_limit
    name, room = min(rooms.items(), key=lambda item: item[1])
    vms = max(0, room) // (DOCTOR.vmm_threads + 1)
    text = f"room for {vms} more VMs of one vCPU, by {name}"
    if vms >= DOCTOR.vms:
        return ok(text)
    return note(text, f"raise {name}: each VM takes {DOCTOR.vmm_threads} threads and its vCPUs")


def _own_cgroup() -> tuple[int, int] | None:
    """Limit and use of the pids controller here; None where there is no limit or no controller."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "pids"}:
            continue
        folder = Path("/sys/fs/cgroup") / controllers / path.lstrip("/")
        with suppress(OSError, ValueError):  # "max", or not mounted here
            return _number(folder / "pids.max"), _number(folder / "pids.current")
    return None


def _number(path: Path, *, after: str = "") -> int:
    text = path.read_text(encoding="ascii")
    return int((text.partition(after)[2] if after else text).split()[0])


CHECKS: dict[str, Look] = {
    "user": _user,
    "cgroups": _cgroups,
    "disk": _disk,
    "records": _records,
    "memory": _memory,
    "descriptors": _descriptors,
    "threads": _threads,
}
