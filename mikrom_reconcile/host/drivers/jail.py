"""Where the files of a VM lie, and its jail: a folder that is all its VMM sees, a user of its own, and cgroups.

Firecracker's jailer makes the jail. What a VMM works on stays where it is and is linked into it, so that data outlive
it, and nothing is ever read through the jail but its pid file, before the guest runs: whoever breaks out into a jail
can put there what he likes. The API socket has a link in its usual place, so that a jailed VMM is found, asked and
ended as any other. The VM's cgroups have a parent of the VM's own, so that nobody else's is in the way when both are
removed; their limits are generous: they are there for a VMM that was broken out into, not to save memory.
"""

import errno
import functools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.desired import Machine
from mikrom_reconcile.host.resources.disks import Disk
from mikrom_reconcile.host.resources.provisioner import VMResources
from mikrom_reconcile.system import processes
from mikrom_reconcile.system.files import make_folder, read_small
from mikrom_reconcile.system.netlink import make_tap
from mikrom_reconcile.times_and_sizes import VMMS

FIRST_UID, UIDS = 900_000, 1 << 16  # the users of jailed VMMs; docs/security.md names the range

LOG, METRICS = "/vmm.log", "/metrics"
VSOCK = "/v.sock"
_KERNEL, _INITRD = "/kernel", "/initrd"

CONTROLLERS = ("memory", "cpu", "pids")  # what a VMM is limited by

Hierarchy = tuple[int, dict[str, Path]]  # version, and where each controller is mounted


class VMPaths:
    """The files of one VM. The lock lies outside its folder, and goes when the VM is deleted; the socket on a tmpfs."""

    def __init__(self, state_dir: Path, run_dir: Path, vm: str) -> None:
        self.vm = vm
        self.folder = state_dir / "vms" / vm
        self.lock = state_dir / "locks" / f"{vm}.vmm"
        self.run_folder = run_dir / vm
        self.socket = run_dir / vm / "api.sock"  # a link if the VMM is jailed
        self.vsock = run_dir / vm / "v.sock"  # where programs of the host meet the guest; a link as the other
        self.process = self.folder / "proc.json"  # which process the VMM is
        self.console = self.folder / "console.log"  # what the guest wrote to its serial port, over all its boots
        self.log = self.folder / "vmm.log"  # what the VMM itself said since it was started
        self.metrics = self.folder / "metrics"  # a Firecracker's counters; the last line tells how it ended
        self.pidfile = self.folder / "qemu.pid"  # made by a QEMU that starts, removed by one that ends in order
        self.metadata = self.folder / "metadata.img"  # the guest's metadata, for a VMM that has no service for it
        self.memory = self.folder / "memory.img"  # what a suspended guest had in memory
        self.devices = self.folder / "devices.bin"  # the state of its vCPUs and devices
        self.suspended = self.folder / "suspended.json"  # made once both are whole; says what has to fit them
        self.jail = state_dir / "jails" / vm  # all that a jailed VMM sees is somewhere below
        self.uids = state_dir / "uids"  # which user is which VM's, for all VMs
        self.jailed_socket = f"/{blake2b(bytes(run_dir), digest_size=8).hexdigest()}.sock"
        """The API socket as a jailed VMM sees it: its command line tells which run folder it belongs to."""

    def files(self) -> tuple[Path, ...]:
        """Everything that a driver may have made for the VM, the lock apart."""
        kept = (self.suspended, self.memory, self.devices)
        drafts = (path.with_name(path.name + ".new") for path in (self.process, self.suspended))
        logs = (self.console, self.log, self.metrics)
        return (self.socket, self.vsock, self.process, *logs, self.pidfile, self.metadata, *kept, *drafts)


class Jail:
    """The jail in which `binary` gets `resources`, with a user of the VM's own for it. Methods raise OSError."""

    def __init__(self, paths: VMPaths, binary: Path, resources: VMResources) -> None:
        name = binary.resolve().name
        self.uid = _claimed_uid(paths)
        self._paths, self._media = paths, resources
        self._root = paths.jail / name / paths.vm / "root"
        self._pidfile = self._root / f"{name}.pid"

    def arguments(self, machine: Machine) -> tuple[str, ...]:
        """The jailer's, but its own path and the binary's. Without --daemonize, which would take console and lock."""
        return (
            *("--id", self._paths.vm, "--chroot-base-dir", str(self._paths.jail)),
            *("--uid", str(self.uid), "--gid", str(self.uid), "--new-pid-ns"),
            *_cgroup_arguments(self._paths, machine),
        )

    def populate(self) -> None:
        """Make what the jailer does not make."""
        make_folder(self._root)
        for outside, name, is_writable in self._links():
            if is_writable:
                os.chown(outside, self.uid, self.uid, follow_symlinks=False)
            else:
                # shared by VMs: none owns it, and the folder above is closed
                outside.chmod(outside.stat().st_mode & 0o555 | 0o444)
            try:
                os.link(outside, f"{self._root}{name}", follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                parent = self._paths.jail.parent
                message = f"it is not on the file system of {parent}, where a jailed VMM has to find it"
                raise OSError(errno.EINVAL, message, str(outside)) from error
        for interface in self._media.interfaces:
            make_tap(interface.tap, owner=self.uid)
        self._paths.socket.symlink_to(f"{self._root}{self._paths.jailed_socket}")

    def await_jailed_vmm(self, jailer: int) -> processes.Identity | None:
        """The VMM that the process `jailer` left when it ended; None if there is none, and then nothing lives."""
        identity = processes.identify(jailer)
        if identity is not None and not processes.wait_for_end(identity, VMMS.jailer_s):
            processes.kill(identity)
        processes.reap()
        lock = str(self._paths.lock)
        pid = read_small(self._pidfile, max_bytes=VMMS.pid_file_bytes)
        found = processes.identify(int(pid)) if pid else None
        if found is not None and processes.has_stdin(found.pid, lock):
            return found
        for half_started in processes.with_locked_stdin(lock):
            if (identity := processes.identify(half_started)) is not None:
                processes.kill(identity)
                processes.wait_for_end(identity, VMMS.kill_s)
        return None

    def _links(self) -> Iterator[tuple[Path, str, bool]]:
        """Files outside with their names inside and whether the VMM may write them."""
        yield self._media.kernel, _KERNEL, False
        if self._media.initrd is not None:
            yield self._media.initrd, _INITRD, False
        for disk in self._media.disks:
            yield disk.path, path_inside(disk), not disk.read_only
        for path in (self._paths.memory, self._paths.devices):
            if path.exists():  # it is started to go on
                yield path, f"/{path.name}", True
        yield self._paths.log, LOG, True
        yield self._paths.metrics, METRICS, True


def chroot_view(resources: VMResources) -> VMResources:
    """The same resources by the names that they have in the jail."""
    disks = tuple(msgspec.structs.replace(disk, path=Path(path_inside(disk))) for disk in resources.disks)
    initrd = resources.initrd and Path(_INITRD)
    return msgspec.structs.replace(resources, kernel=Path(_KERNEL), initrd=initrd, disks=disks)


def path_inside(disk: Disk) -> str:
    """Under which path a jailed VMM has the disk open."""
    return f"/{disk.name}.img"


def path_in_jail(paths: VMPaths, outside: Path) -> Path:
    """Where a file of the VM's folder is in the jail of its VMM. Raises OSError if that is not jailed."""
    return paths.socket.readlink().parent / outside.name


def make_writable(paths: VMPaths, new: Path) -> str:
    """Make an empty file that the VM's VMM, jailed or not, may write. Returns its path as that sees it."""
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    if paths.socket.is_symlink():
        os.chown(new, uid := _claimed_uid(paths), uid)
        os.link(new, path_in_jail(paths, new))
    return seen_by_vmm(paths, new)


def seen_by_vmm(paths: VMPaths, outside: Path) -> str:
    """The path of a file of the VM's folder as its VMM, jailed or not, sees it."""
    return f"/{outside.name}" if paths.socket.is_symlink() else str(outside)


def remove_jail(paths: VMPaths) -> None:
    """Remove the jail of a VMM that is gone, however far it had got. Raises OSError."""
    if paths.jail.exists():  # it is there before its cgroups are
        _remove_cgroups(paths)
        shutil.rmtree(paths.jail)


def release_uid(paths: VMPaths) -> None:
    """Let the VM's user be another VM's. Nothing that belongs to it is in reach of others."""
    for link, vm in _users(paths.uids):
        if vm == paths.vm:
            link.unlink(missing_ok=True)


def _claimed_uid(paths: VMPaths) -> int:
    """The VM's user: a link by its number, which names the VM, and which only one can make."""
    for link, vm in _users(paths.uids):
        if vm == paths.vm:
            return int(link.name)
    make_folder(paths.uids)
    first = int.from_bytes(blake2b(bytes(paths.jail), digest_size=4).digest())
    for number in range(first, first + UIDS):
        uid = FIRST_UID + number % UIDS
        with suppress(FileExistsError):
            (paths.uids / str(uid)).symlink_to(paths.vm)
            return uid
    raise OSError(errno.EUSERS, f"all {UIDS} users for VMs are taken", str(paths.uids))


def _users(folder: Path) -> Iterator[tuple[Path, str]]:
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):  # noqa: PTH208 - a Path for each costs more than the rest
            with suppress(FileNotFoundError):  # released meanwhile
                yield folder / name, os.readlink(f"{folder}/{name}")  # noqa: PTH115


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


def _cgroup_arguments(paths: VMPaths, machine: Machine, found: Hierarchy | None = None) -> Iterator[str]:
    """What makes a jailer put its VMM under limits; nothing where the host has none."""
    version, controllers = found or hierarchy()
    memory = (machine.mem_size_mib + machine.mem_size_mib // 64 + VMMS.cgroup_overhead_mib) << 20
    pids = f"pids.max={machine.vcpu_count + VMMS.cgroup_threads}"
    limits = {
        1: (f"memory.limit_in_bytes={memory}", f"cpu.shares={1024 * machine.vcpu_count}", pids),
        2: (f"memory.max={memory}", f"cpu.weight={100 * machine.vcpu_count}", pids),
    }[version]
    if controllers:
        yield from ("--cgroup-version", str(version), "--parent-cgroup", _parent_cgroup(paths))
    for limit in limits:
        if limit.partition(".")[0] in controllers:
            yield from ("--cgroup", limit)


def ran_out_of_memory(paths: VMPaths) -> bool:
    """Whether the kernel killed the VMM for its limit. Known until the cgroup is removed."""
    version, controllers = hierarchy()
    file = {1: "memory.oom_control", 2: "memory.events"}[version]
    words: list[str] = []
    with suppress(KeyError, FileNotFoundError):
        words = (controllers["memory"] / _parent_cgroup(paths) / paths.vm / file).read_text(encoding="ascii").split()
    return "oom_kill" in words and words[words.index("oom_kill") + 1] != "0"


def _remove_cgroups(paths: VMPaths) -> None:
    for mount in set(hierarchy()[1].values()):
        for folder in (mount / _parent_cgroup(paths) / paths.vm, mount / _parent_cgroup(paths)):
            _remove_cgroup(folder)


def _parent_cgroup(paths: VMPaths) -> str:
    return f"mikrom-{blake2b(bytes(paths.jail.parent), digest_size=4).hexdigest()}-{paths.vm}"


def _remove_cgroup(folder: Path) -> None:
    give_up_at = time.monotonic() + VMMS.cgroup_busy_s
    while True:
        try:
            return folder.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(VMMS.poll_s)
