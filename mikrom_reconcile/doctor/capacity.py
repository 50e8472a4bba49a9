"""Whether this machine has room for its microVMs: disk, memory, descriptors, threads. Looks, and changes nothing."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.lifecycle import WANTS_VMM
from mikrom_reconcile.host.drivers.select import choice_of
from mikrom_reconcile.host.observe import capacity
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.limits import DOCTOR
from mikrom_reconcile.output.doctor_text import Check
from mikrom_reconcile.output.units import counted
from mikrom_reconcile.settings import Settings


def room_checks(settings: Settings) -> Iterator[Check]:
    """Each of them with what there is, what is needed, and how to mend it."""
    yield _user()
    yield _cgroups()
    yield _disk(settings.state_dir)
    try:
        found = Records(settings.state_dir).list()
        records = [record for record in found if isinstance(record, VMRecord) and record.state in WANTS_VMM]
    except SetupError as error:
        yield Check(name="records", state="broken", found=str(error))
        return
    yield _memory(records, _need_mib(settings))
    yield _descriptors(len(records))
    yield _threads()


def _user() -> Check:
    uid = os.geteuid()
    if uid == 0:
        return Check(name="user", state="ok", found="root")
    return Check(name="user", state="ok", found=f"uid {uid}, not root: enough for all that needs no tap and no jail")


def _cgroups() -> Check:
    version = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    return Check(
        name="cgroups", state="ok", found=f"{version}; VMMs without a jail stay in the cgroup of whoever starts them"
    )


def _disk(folder: Path) -> Check:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    found = os.statvfs(nearest)
    free = found.f_bavail * found.f_frsize
    no_inodes = found.f_files > 0 and found.f_favail < DOCTOR.vms
    text = f"{free >> 20} MiB free at {nearest}" + (", and next to no inodes" if no_inodes else "")
    if free >= DOCTOR.scarce_disk_bytes and not no_inodes:
        return Check(name="disk", state="ok", found=text)
    remedy = "make room, or move the state with MIKROM_STATE_DIR; each VM may take 3 MiB for its console and logs"
    full = free < DOCTOR.least_disk_bytes or no_inodes
    return Check(name="disk", state="broken" if full else "note", found=text, remedy=remedy)


def _need_mib(settings: Settings) -> Callable[[VMSpec], int]:
    """What a VM takes on this host."""
    with suppress(SetupError):  # told by another check
        return wiring.make_driver(settings, choice_of(settings)).memory_mib
    return lambda spec: spec.machine.mem_size_mib


def _memory(records: list[VMRecord], need_mib: Callable[[VMSpec], int]) -> Check:
    have_mib = capacity().mem_size_mib
    promised_mib = sum(need_mib(record.spec) for record in records)
    available_mib = _number(Path("/proc/meminfo"), after="MemAvailable:") >> 10
    text = f"{have_mib} MiB, {available_mib} available; {promised_mib} promised to {counted(len(records), 'VM')}"
    if promised_mib > have_mib:
        return Check(name="memory", state="broken", found=text, remedy="stop some VMs: this host cannot keep its word")
    if promised_mib + available_mib > have_mib and available_mib < promised_mib // 10:
        return Check(name="memory", state="note", found=text, remedy="something beside the VMs takes it: see who")
    return Check(name="memory", state="ok", found=text)


def _descriptors(vms: int) -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = vms + DOCTOR.worker_descriptors
    if hard == resource.RLIM_INFINITY or hard >= need:
        return Check(name="descriptors", state="ok", found=f"{hard} allowed, a host worker needs up to {need}")
    remedy = "raise it: ulimit -Hn, LimitNOFILE= in systemd, or /etc/security/limits.conf"
    return Check(name="descriptors", state="broken", found=f"{hard} allowed, {need} needed", remedy=remedy)


def _threads() -> Check:
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
        return Check(name="threads", state="ok", found=text)
    return Check(
        name="threads", state="note", found=text, remedy=f"raise {name}: each VM takes 3 threads and its vCPUs"
    )


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
    return int(
        path.read_text(encoding="ascii").partition(after)[2].split()[0] if after else path.read_text().split()[0]
    )
