"""A Firecracker that somebody started by hand: which process it is, and what describes it in the words of the specs.
What they have no words for is refused by its name: a restart would take it away.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mikrom_reconcile.core.model.desired import Balloon, Machine
from mikrom_reconcile.core.model.errors import PermanentError
from mikrom_reconcile.core.specs import releases
from mikrom_reconcile.host.drivers import firecracker_config
from mikrom_reconcile.host.drivers.connection import FirecrackerAPI
from mikrom_reconcile.host.errors import UnreachableError
from mikrom_reconcile.host.resources.provisioner import ResourceProvisioner
from mikrom_reconcile.system import processes

Config = dict[str, Any]  # what `GET /vm/config` says, all of it

_SAID: dict[str, tuple[str, ...]] = {
    "boot-source": ("kernel_image_path", "initrd_path", "boot_args"),
    "machine-config": Machine.__struct_fields__,
    "drives": ("drive_id", "path_on_host", "is_root_device", "is_read_only"),
    "balloon": Balloon.__struct_fields__,
    "entropy": (),
    "logger": ("log_path", "level", "show_level", "show_log_origin", "module"),  # every VM of ours has its own
    "metrics": ("metrics_path",),
}
"""The keys of each section that the specs have words for, or that need none."""
_SAME = (None, False, "Unsafe", "Writeback", "Sync")  # values of other keys, where what ours have is as safe


def look(socket: str, provisioner: ResourceProvisioner, timeout_s: float) -> tuple[processes.Identity, Config, Config]:
    """What listens there: its process, and the spec of an Image and the template of a fleet that describe it. Raises
    PermanentError and FetchError for what cannot be taken over, VMMError, OSError.
    """
    try:
        api = FirecrackerAPI(socket, pid=None, give_up_at=time.monotonic() + timeout_s)
    except UnreachableError as error:
        raise PermanentError(f"nobody listens at {socket} ({error}): is that its path, on this host?") from error
    with api:
        process, said = _checked(api.pid), api.get("/", dict[str, str])
        oldest, program = releases.RELEASES[0].line, f"{said.get('app_name')} {said.get('vmm_version')}"
        if not program.startswith("Firecracker") or releases.version_in(program) < oldest:
            raise PermanentError(f"pid {api.pid} is {program}, older than Firecracker {releases.text_of(oldest)}")
        api.get("/vm/config", firecracker_config.Config)  # which reads it more closely
        config = api.get("/vm/config", Config)
    if said.get("state") == "Not started":
        raise PermanentError(f"pid {api.pid} has not booted its guest: start that first")
    if unsaid := [*_unsaid(config)]:
        raise PermanentError(f"the specs have no words for {', '.join(unsaid)}: start it without")
    image, template = _described(api.pid, config, provisioner)
    return process, image, template | ({"state": "paused"} if said.get("state") == "Paused" else {})


def _checked(pid: int) -> processes.Identity:
    """The process that serves a socket, before anything is said to it."""
    process = processes.identify(pid) if pid else None
    if process is None or not Path(f"/proc/{pid}/root").samefile("/"):
        raise PermanentError("it is in a jail or a container, and has what only that sees: start it outside of one")
    program, argv = os.readlink(f"/proc/{pid}/exe"), processes.arguments(pid)  # noqa: PTH115 - it may be deleted
    if "firecracker" not in Path(program).name and "--api-sock" not in argv:
        raise PermanentError(f"pid {pid} is no Firecracker but {program}")
    if (processes.stdin_of(pid) or "").endswith(".vmm"):
        raise PermanentError(f"pid {pid} was started by mikrom: if its record is lost, restore that")
    if "--enable-pci" in argv:
        raise PermanentError(f"pid {pid} has --enable-pci, without which mikrom would start it again: start it without")
    return process


def _described(pid: int, config: Config, provisioner: ResourceProvisioner) -> tuple[Config, Config]:
    boot, folder = config["boot-source"], Path(f"/proc/{pid}/cwd").readlink()
    files, drives = {"kernel": boot.get("kernel_image_path"), "initrd": boot.get("initrd_path")}, {}
    image = {part: provisioner.images.pinned(folder / path) for part, path in files.items() if path}
    for drive in config.get("drives", ()):
        path = folder / drive["path_on_host"]
        flags = {"is_root_device": drive.get("is_root_device"), "read_only": drive.get("is_read_only")}
        said = {"source": provisioner.disks.source_of(path)} | flags
        drives[drive["drive_id"]] = {key: value for key, value in said.items() if value}
        if not any(map(path.samefile, Path(f"/proc/{pid}/fd").iterdir())):
            raise PermanentError(f"{path} is not what drive {drive['drive_id']} has open: put that back there")
    template = {
        "machine": _said(config, "machine-config"),
        "boot_args": boot["boot_args"].replace("${", "$${"),
        "drives": drives,
        "balloon": _said(config, "balloon"),
        "entropy": config.get("entropy") is not None,
    }
    return image, {key: value for key, value in template.items() if value != {}}


def _said(config: Config, section: str) -> Config:
    """What a section gives in words that the specs have, too."""
    given = config.get(section) or {}
    return {key: given[key] for key in _SAID[section] if given.get(key) not in {None, "None"}}


def _unsaid(config: Config) -> Iterator[str]:
    """What the specs have no words for."""
    if config["boot-source"].get("boot_args") is None:
        yield "boot_args that it was not given, in which releases differ"
    for section, value in config.items():
        for part in value if isinstance(value, list) else [value]:
            fields = part if isinstance(part, dict) else {"": part}
            odd = [key for key in fields if key not in _SAID.get(section, ()) and fields[key] not in _SAME]
            yield from [f"{section}.{key}" for key in odd] if section in _SAID else [section][: len(odd)]
    names = [drive["drive_id"] for drive in config.get("drives", ()) if not drive.get("is_root_device")]
    if names != sorted(names):
        yield f"drives in another order than that of their names ({', '.join(names)})"
