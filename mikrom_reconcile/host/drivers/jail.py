"""The jail of a VMM: a folder that is all it sees, a user of its own, and limits. Firecracker's jailer makes it.

What a VMM works on stays where it is and is linked into the jail, so that data outlive it, and nothing is ever read
through the jail but its pid file, before the guest runs: whoever breaks out into a jail can put there what he likes.
The API socket has a link in its usual place, so that a jailed VMM is found, asked and ended as any other.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import msgspec

from mikrom_reconcile.host.drivers import cgroups
from mikrom_reconcile.host.drivers.vmm import Places, kill
from mikrom_reconcile.host.resources.disks import Disk
from mikrom_reconcile.host.resources.networks import own_tap
from mikrom_reconcile.host.resources.provisioner import VMResources
from mikrom_reconcile.limits import VMMS
from mikrom_reconcile.system import processes
from mikrom_reconcile.system.files import read_small
from mikrom_reconcile.system.folders import make_folder

FIRST_UID, UIDS = 900_000, 1 << 16
"""The users of jailed VMMs; docs/security.md names the range."""

SOCKET, LOG, METRICS = "/api.sock", "/vmm.log", "/metrics"
_KERNEL, _INITRD = "/kernel", "/initrd"


class Jail(msgspec.Struct, frozen=True, kw_only=True):
    """What one is made of. `links` are files outside with their names inside and whether the VMM may write them."""

    uid: int
    root: Path
    pidfile: Path
    links: tuple[tuple[Path, str, bool], ...]
    taps: tuple[str, ...]


def jail_of(places: Places, binary: Path, media: VMResources) -> Jail:
    """The jail in which `binary` gets `media`, and a user of the VM's own for it. Raises OSError."""
    name = binary.resolve().name
    root = places.jail / name / places.vm / "root"
    return Jail(
        uid=_claimed(places),
        root=root,
        pidfile=root / f"{name}.pid",
        links=tuple(_links(places, media)),
        taps=tuple(interface.tap for interface in media.interfaces),
    )


def inside(media: VMResources) -> VMResources:
    """The same media by the names that they have in the jail."""
    disks = tuple(msgspec.structs.replace(disk, path=Path(path_inside(disk))) for disk in media.disks)
    initrd = media.initrd and Path(_INITRD)
    return msgspec.structs.replace(media, kernel=Path(_KERNEL), initrd=initrd, disks=disks)


def path_inside(disk: Disk) -> str:
    """Under which path a jailed VMM has the disk open."""
    return f"/{disk.name}.img"


def furnish(jail: Jail, places: Places) -> None:
    """Make what the jailer does not make. Raises OSError."""
    make_folder(jail.root)
    for outside, name, is_writable in jail.links:
        if is_writable:
            os.chown(outside, jail.uid, jail.uid, follow_symlinks=False)
        else:
            outside.chmod(0o444)  # shared by VMs: none owns it, and the folder above is closed
        try:
            os.link(outside, f"{jail.root}{name}", follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            message = f"it is not on the file system of {places.jail.parent}, where a jailed VMM has to find it"
            raise OSError(errno.EINVAL, message, str(outside)) from error
    for tap in jail.taps:
        own_tap(tap, jail.uid)
    places.socket.symlink_to(f"{jail.root}{SOCKET}")


def inmate(jailer: int, jail: Jail, places: Places) -> processes.Identity | None:
    """The VMM that the process `jailer` left behind when it ended; None if there is none, and then nothing lives."""
    identity = processes.identify(jailer)
    pidfd = processes.open_pidfd(identity) if identity else None
    if pidfd is not None:
        try:
            if not processes.wait_for_end(pidfd, VMMS.jailer_s):
                processes.kill(pidfd)
        finally:
            os.close(pidfd)
    processes.reap()
    pid = read_small(jail.pidfile, max_bytes=VMMS.pid_file_bytes)
    found = processes.identify(int(pid)) if pid else None
    if found is not None and processes.has_stdin(found.pid, str(places.lock)):
        return found
    for half in processes.with_locked_stdin(str(places.lock)):
        if (identity := processes.identify(half)) is not None:
            kill(identity)
    return None


def sweep(places: Places) -> None:
    """Remove the jail of a VMM that is gone, however far it had got. Raises OSError."""
    if places.jail.exists():  # it is there before its cgroups are
        cgroups.remove(places)
        shutil.rmtree(places.jail)


def release(places: Places) -> None:
    """Let the VM's user be another VM's. Nothing that belongs to it is in reach of others."""
    for link, vm in _users(places.uids):
        if vm == places.vm:
            link.unlink(missing_ok=True)


def _links(places: Places, media: VMResources) -> Iterator[tuple[Path, str, bool]]:
    yield media.kernel, _KERNEL, False
    if media.initrd is not None:
        yield media.initrd, _INITRD, False
    for disk in media.disks:
        yield disk.path, path_inside(disk), not disk.read_only
    yield places.log, LOG, True
    yield places.metrics, METRICS, True


def _claimed(places: Places) -> int:
    """The VM's user: a link by its number, which names the VM, and which only one can make."""
    for link, vm in _users(places.uids):
        if vm == places.vm:
            return int(link.name)
    make_folder(places.uids)
    first = int.from_bytes(blake2b(bytes(places.jail), digest_size=4).digest())
    for number in range(first, first + UIDS):
        uid = FIRST_UID + number % UIDS
        with suppress(FileExistsError):
            (places.uids / str(uid)).symlink_to(places.vm)
            return uid
    raise OSError(errno.EUSERS, f"all {UIDS} users for VMs are taken", str(places.uids))


def _users(folder: Path) -> Iterator[tuple[Path, str]]:
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):  # noqa: PTH208 - a Path for each costs more than the rest
            with suppress(FileNotFoundError):  # released meanwhile
                yield folder / name, os.readlink(f"{folder}/{name}")  # noqa: PTH115
