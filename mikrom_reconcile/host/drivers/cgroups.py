"""The limits that the kernel keeps a jailed VMM to: cgroups v1 or v2, as far as this host offers them.

Firecracker's jailer makes them, in a cgroup whose parent is the VM's own too, so that nobody else's is in the way when
both are removed. Numbers are generous: a limit is there for a VMM that was broken out into, not to save memory.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from mikrom_reconcile.core.model.desired import Machine
from mikrom_reconcile.host.drivers.vmm import Places
from mikrom_reconcile.limits import VMMS

CONTROLLERS = ("memory", "cpu", "pids")
"""What a VMM is limited by."""

Hierarchy = tuple[int, dict[str, Path]]
"""Version, and where each controller is mounted."""


@functools.cache
def hierarchy() -> Hierarchy:
    """What this host offers; no controller where cgroups are closed to us, as in many containers."""
    return offered(Path("/proc/self/mounts").read_text(encoding="utf-8"))


def offered(mounts: str) -> Hierarchy:
    """The same from the text of a mount table. Where both versions are mounted, v1 has the controllers."""
    v1: dict[str, Path] = {}
    v2: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, mount, kind, text, *_ = line.split()
        options = text.split(",")
        if "rw" not in options:
            continue
        if kind == "cgroup":
            v1 |= {name: Path(mount) for name in CONTROLLERS if name in options}
        elif kind == "cgroup2":
            with suppress(FileNotFoundError):
                there = (Path(mount) / "cgroup.controllers").read_text(encoding="ascii").split()
                v2 |= {name: Path(mount) for name in CONTROLLERS if name in there}
    return (1, v1) if v1 else (2, v2)


def arguments(places: Places, machine: Machine, found: Hierarchy | None = None) -> Iterator[str]:
    """What makes a jailer put its VMM under limits; nothing where the host has none."""
    version, controllers = found or hierarchy()
    memory = machine.mem_size_mib + machine.mem_size_mib // 64 + VMMS.cgroup_overhead_mib
    pids = f"pids.max={machine.vcpu_count + VMMS.cgroup_threads}"
    limits = {
        1: (f"memory.limit_in_bytes={memory << 20}", f"cpu.shares={1024 * machine.vcpu_count}", pids),
        2: (f"memory.max={memory << 20}", f"cpu.weight={100 * machine.vcpu_count}", pids),
    }[version]
    if controllers:
        yield from ("--cgroup-version", str(version), "--parent-cgroup", _parent(places))
    for limit in limits:
        if limit.partition(".")[0] in controllers:
            yield from ("--cgroup", limit)


def ran_out_of_memory(places: Places) -> bool:
    """Whether the kernel killed the VMM for its limit. Known until the cgroup is removed."""
    version, controllers = hierarchy()
    if "memory" not in controllers:
        return False
    file = _folder(places, controllers["memory"]) / {1: "memory.oom_control", 2: "memory.events"}[version]
    with suppress(FileNotFoundError):
        words = dict(line.split() for line in file.read_text(encoding="ascii").splitlines())
        return int(words.get("oom_kill", 0)) > 0
    return False


def remove(places: Places) -> None:
    """Remove the cgroups of a VMM that is gone. Raises OSError."""
    for mount in set(hierarchy()[1].values()):
        folder = _folder(places, mount)
        for each in (folder, folder.parent):
            _remove(each)


def _parent(places: Places) -> str:
    return f"mikrom-{blake2b(bytes(places.jail.parent), digest_size=4).hexdigest()}-{places.vm}"


def _folder(places: Places, mount: Path) -> Path:
    return mount / _parent(places) / places.vm


def _remove(folder: Path) -> None:
    give_up_at = time.monotonic() + VMMS.cgroup_busy_s
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < give_up_at:
                time.sleep(VMMS.poll_s)
                continue
            raise
        return
