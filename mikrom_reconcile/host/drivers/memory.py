"""What a suspended VM leaves on disk: its memory, the state of its devices, and what has to be the same to go on.

A memory goes on once. It is forgotten, and that survives a power cut, before its guest runs: from then on the VM's
disks are no longer those that the memory knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.fields import needs_restart
from mikrom_reconcile.host.drivers.jail import VMPaths, path_in_jail
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.disks import Disk
from mikrom_reconcile.host.resources.provisioner import boot_args_of
from mikrom_reconcile.system.files import OddFileError, descriptor, read_small, sync, sync_folder, write_whole
from mikrom_reconcile.times_and_sizes import VMMS

RESUMING = "resuming its memory"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What was written down once the memory was whole: whose it is, what it was made by and on, and which files belong
    to it, with size and time of change in nanoseconds.
    """

    uid: str
    vmm: str
    cpu: str
    spec: VMSpec
    boot_args: str
    files: dict[str, tuple[int, int]]


def check_room(paths: VMPaths, record: VMRecord) -> None:
    """Raise TemporaryError if the disk has no room for the memory."""
    disk = os.statvfs(paths.folder)
    need, left = record.spec.machine.mem_size_mib + VMMS.suspended_extra_mib, disk.f_bavail * disk.f_frsize >> 20
    if need > left:
        message = f"its memory needs {need} MiB and {left} are left in {paths.folder}: free some, or stop it"
        raise TemporaryError(message, vm=record.vm, step="looking for room for its memory")


def keep(paths: VMPaths, record: VMRecord, disks: Iterable[Disk], *, vmm: str) -> None:
    """Say that the memory is whole, from now on and after a power cut. Raises OSError."""
    files = {}
    for path in (paths.memory, paths.devices, *(disk.path for disk in disks)):
        with descriptor(path, os.O_RDONLY) as fd:
            sync(fd)
            files[str(path)] = _state_of(os.fstat(fd))
    kept = Kept(uid=record.uid, vmm=vmm, cpu=_cpu(), spec=record.spec, boot_args=boot_args_of(record), files=files)
    write_whole(paths.suspended, msgspec.json.encode(kept))


def read(paths: VMPaths) -> Kept | None:
    """What was kept; None if nothing is, or not all of it. Raises OSError."""
    try:
        content = read_small(paths.suspended, max_bytes=VMMS.suspended_file_bytes)
        return None if content is None else msgspec.json.decode(content, type=ready(Kept))
    except (OddFileError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def check(kept: Kept, record: VMRecord) -> None:
    """Raise PermanentError with what does not fit."""
    changed = [path for path, state in kept.files.items() if _state_at(Path(path)) != state]
    reasons = (
        (kept.uid != record.uid, "it is of an earlier VM of that name"),
        (needs_restart(kept.spec, record.spec), "its spec has changed"),
        (kept.boot_args != boot_args_of(record), "its boot arguments or addresses have changed"),
        (kept.cpu != _cpu(), f"it was on the CPU {kept.cpu}, and this is {_cpu()}"),
        (bool(changed), f"gone or changed since: {', '.join(changed)}"),
    )
    for does_not_fit, reason in reasons:
        if does_not_fit:
            raise PermanentError(reason, vm=record.vm, step=RESUMING)


def forget(paths: VMPaths) -> None:
    """Let nobody go on with it. Raises OSError."""
    was_whole = paths.suspended.exists()
    paths.suspended.unlink(missing_ok=True)
    if was_whole:
        sync_folder(paths.folder)
    for path in (paths.memory, paths.devices):
        path.unlink(missing_ok=True)
        if inside := path_in_jail(paths, path):
            with suppress(OSError):  # whoever broke out into the jail put there what he liked
                inside.unlink()


def _state_at(path: Path) -> tuple[int, int] | None:
    try:
        return _state_of(path.stat())
    except FileNotFoundError:
        return None


def _state_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _cpu() -> str:
    """Model and features, which a guest has looked at when it booted."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    features = blake2b(values.get("flags", "").encode(), digest_size=4).hexdigest()
    return f"{values.get('model name', 'unknown')} (features {features})"
