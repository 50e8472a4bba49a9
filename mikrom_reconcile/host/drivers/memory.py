"""What a suspended VM leaves on disk: its memory, the state of its devices, and what has to be the same to go on. A
memory goes on once. It is forgotten, and that survives a power cut, before its guest runs: from then on the VM's disks
are no longer those that the memory knows.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.fields import needs_restart
from mikrom_reconcile.host.drivers.jail import VMPaths, make_writable, path_in_jail
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.disks import Disk
from mikrom_reconcile.host.resources.provisioner import boot_args_of
from mikrom_reconcile.system.files import descriptor, read_json, sync, sync_folder, write_whole
from mikrom_reconcile.times_and_sizes import VMMS


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What was so when the memory was whole: `facts` have to be the same, in words, and `files` belong to it."""

    spec: VMSpec
    files: tuple[str, ...]
    facts: dict[str, str]


def create(paths: VMPaths, record: VMRecord) -> tuple[str, str]:
    """Empty files for devices and memory, as the VMM sees them. Raises OSError, TemporaryError where is no room."""
    disk, need = os.statvfs(paths.folder), record.spec.machine.mem_size_mib
    if need >= (left := disk.f_bavail * disk.f_frsize >> 20):
        raise TemporaryError(f"its memory needs {need} MiB and {left} are left in {paths.folder}: free some or stop it")
    return make_writable(paths, paths.devices), make_writable(paths, paths.memory)


def keep(paths: VMPaths, record: VMRecord, disks: Iterable[Disk], *, vmm: str) -> None:
    """Say that the memory is whole, from now on and after a power cut. Raises OSError."""
    files = tuple(str(path) for path in (paths.memory, paths.devices, *(disk.path for disk in disks)))
    for path in files:
        with descriptor(path, os.O_RDONLY) as fd:
            sync(fd)
    kept = Kept(spec=record.spec, files=files, facts=_facts(record, files, vmm))
    write_whole(paths.suspended, msgspec.json.encode(kept))


def read(paths: VMPaths) -> Kept | None:
    """What was kept; None if nothing is, or not all of it. Raises OSError."""
    return read_json(paths.suspended, Kept, max_bytes=VMMS.suspended_file_bytes)


def check(kept: Kept, record: VMRecord, *, vmm: str) -> None:
    """Raise PermanentError with what does not fit."""
    now = _facts(record, kept.files, vmm)
    odd = ["its spec has changed"] if needs_restart(kept.spec, record.spec) else []
    odd += [f"its {name} was {was}, and is {now[name]}" for name, was in kept.facts.items() if now[name] != was]
    if odd:
        raise PermanentError("; ".join(odd))


def forget(paths: VMPaths) -> None:
    """Let nobody go on with it. Raises OSError."""
    with suppress(FileNotFoundError):
        paths.suspended.unlink()
        sync_folder(paths.folder)
    for path in (paths.memory, paths.devices):
        path.unlink(missing_ok=True)
        with suppress(OSError):  # whoever broke out into the jail put there what he liked
            path_in_jail(paths, path).unlink()


def _facts(record: VMRecord, files: Iterable[str], vmm: str) -> dict[str, str]:
    facts = {"uid": record.uid, "VMM": vmm, "CPU": _cpu(), "kernel's command line": boot_args_of(record)}
    return facts | {path: _state_of(path) for path in files}


def _state_of(path: str) -> str:
    with suppress(FileNotFoundError):
        found = Path(path).stat()
        return f"{found.st_size} bytes changed at {found.st_mtime_ns} ns"
    return "gone"


def _cpu() -> str:
    """Model and features, which a guest has looked at when it booted."""
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    values = dict(line.replace("\t", "").partition(":")[::2] for line in first.splitlines())
    features = blake2b(values.get("flags", "").encode(), digest_size=4).hexdigest()
    return f"{values.get('model name', '').strip()} (features {features})"
