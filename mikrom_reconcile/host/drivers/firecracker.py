"""Firecracker microVMs, jailed or not: processes of their own session that outlive whoever started them.

`vmm_driver.py` has what is not Firecracker's own. `firecracker_start.py` says how one is started and configured,
`firecracker_end.py` how one ended.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.core.model.observed import End, VMMStatus
from mikrom_reconcile.core.specs import validate_vms
from mikrom_reconcile.host.drivers import cgroups, jail
from mikrom_reconcile.host.drivers.firecracker_api import Api
from mikrom_reconcile.host.drivers.firecracker_end import end_of, let_end
from mikrom_reconcile.host.drivers.firecracker_start import (
    command,
    jailed,
    kernel_problem,
    limits_of,
    mbit_of,
    requests,
)
from mikrom_reconcile.host.drivers.translate_errors import NoAnswerError, step
from mikrom_reconcile.host.drivers.vmm import Places, Proc
from mikrom_reconcile.host.drivers.vmm_driver import Answer, VMMDriver
from mikrom_reconcile.host.drivers.vmm_start import Command, connected
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.networks import Interface
from mikrom_reconcile.host.resources.provisioner import VMResources
from mikrom_reconcile.system import processes

_STATUS: dict[str, VMMStatus] = {"Not started": "starting", "Running": "running", "Paused": "paused"}


class _Instance(msgspec.Struct):
    state: str


class _BootSource(msgspec.Struct):
    boot_args: str | None = None


class _Drive(msgspec.Struct):
    drive_id: str
    path_on_host: str | None = None


class _Bucket(msgspec.Struct):
    size: int = 0
    refill_time: int = 0


class _Limiter(msgspec.Struct):
    bandwidth: _Bucket | None = None


class _Nic(msgspec.Struct):
    iface_id: str
    host_dev_name: str
    guest_mac: str | None = None
    rx_rate_limiter: _Limiter | None = None
    tx_rate_limiter: _Limiter | None = None


class _Config(msgspec.Struct, rename="kebab"):
    machine_config: Machine
    boot_source: _BootSource
    drives: tuple[_Drive, ...] = ()
    network_interfaces: tuple[_Nic, ...] = ()


class FirecrackerDriver(VMMDriver):
    """The driver for Firecracker.

    Firecracker 1.12.1 never ends by itself if a request comes at the very moment its guest ends: its main thread
    waits for the API's and that for an answer. Whoever asked it lets it end then (`let_end`).
    """

    name = "firecracker"

    def __init__(self, binary: Path, *, jailer: Path | None = None, **places: Any) -> None:
        super().__init__(binary, **places)
        self._jailer = jailer

    def memory_mib(self, spec: VMSpec) -> int:
        """Firecracker itself takes some 2 MiB, which the host's own reserve has to bear."""
        return spec.machine.mem_size_mib

    def _unsupported(self, spec: VMSpec) -> str | None:
        """Why Firecracker cannot run `spec`."""
        return validate_vms.unsupported(spec)

    def _kernel_problem(self, kernel: Path) -> str | None:
        return kernel_problem(kernel)

    def _is_one(self, name: str, argv: list[str]) -> str | None:
        if not name.startswith("firecracker") and "--api-sock" not in argv:  # jailed ones have another name
            return None
        return argv[argv.index("--id") + 1] if "--id" in argv[:-1] else ""

    def _command(self, record: VMRecord, places: Places, media: VMResources) -> Command:
        if self._jailer is None:
            return command(self._binary, places)
        own = jail.jail_of(places, self._binary, media)
        return jailed(command(self._binary, places), self._jailer, own, places, record.spec.machine)

    def _boot(self, record: VMRecord, places: Places, proc: Proc, media: VMResources, *, give_up_at: float) -> None:
        with step(record.vm, "connecting to Firecracker"):
            api = connected(lambda: Api(str(places.socket), pid=proc.pid, give_up_at=give_up_at), proc, give_up_at)
        with api:
            for path, content, doing in requests(record.spec, jail.inside(media) if self._jailer else media):
                with step(record.vm, doing):
                    api.put(path, content)

    def _answer(self, record: VMRecord, places: Places, found: processes.Identity, timeout_s: float) -> Answer:
        try:
            with self._api(places, found, timeout_s) as api:
                state = api.get("/", _Instance).state
                config = api.get("/vm/config", _Config)
                metadata = api.get("/mmds", dict[str, Any]) if record.spec.mmds is not None else None
        except NoAnswerError:
            let_end(found, places.metrics)
            raise
        status = _STATUS.get(state, "unresponsive")
        if status not in {"running", "paused"}:
            return Answer(status=status)
        return Answer(
            status=status,
            machine=config.machine_config,
            boot_args=config.boot_source.boot_args or "",
            disks=self._outside(record, places, {drive.drive_id: drive.path_on_host or "" for drive in config.drives}),
            interfaces={nic.iface_id: _interface(nic) for nic in config.network_interfaces},
            metadata=metadata,
        )

    def _set_paused(self, places: Places, found: processes.Identity, timeout_s: float, *, paused: bool) -> None:
        with self._api(places, found, timeout_s) as api:
            api.patch("/vm", {"state": "Paused" if paused else "Resumed"})

    def _update(self, record: VMRecord, places: Places, found: processes.Identity, timeout_s: float) -> None:
        with self._api(places, found, timeout_s) as api:
            there = {nic.iface_id: _interface(nic) for nic in api.get("/vm/config", _Config).network_interfaces}
            for interface in self._provisioner.networks.in_place(record):
                has = there.get(interface.name)
                if has is not None and has.bandwidth_mbit != interface.bandwidth_mbit:
                    content = {"iface_id": interface.name} | limits_of(interface)
                    api.patch(f"/network-interfaces/{interface.name}", content)
            if (metadata := self._provisioner.metadata_of(record)) is not None:
                api.put("/mmds", metadata)

    def _ask_to_leave(self, places: Places, found: processes.Identity, timeout_s: float) -> None:
        with self._api(places, found, timeout_s) as api:
            # the request that ends the guest comes last: another one at that moment makes Firecracker hang
            if api.get("/", _Instance).state == "Paused":
                api.patch("/vm", {"state": "Resumed"})
            api.put("/actions", {"action_type": "SendCtrlAltDel"})

    def _end_of(self, places: Places) -> End:
        end = end_of(places.metrics)
        return "oom" if end == "killed" and cgroups.ran_out_of_memory(places) else end

    def _outside(self, record: VMRecord, places: Places, found: dict[str, str]) -> dict[str, str]:
        """The paths under which a VMM has its disks open, as they are outside of its jail, if it has one."""
        if not found or not places.socket.is_symlink():
            return found
        own = {disk.name: disk for disk in self._provisioner.disks_of(record)}
        return {
            name: str(own[name].path) if name in own and jail.path_inside(own[name]) == path else path
            for name, path in found.items()
        }

    @staticmethod
    def _api(places: Places, found: processes.Identity, timeout_s: float) -> Api:
        return Api(str(places.socket), pid=found.pid, give_up_at=time.monotonic() + timeout_s)


def _interface(nic: _Nic) -> Interface:
    """What the VMM has; a limit that only one direction has is none that we gave it."""
    limits = {_limit(limiter) for limiter in (nic.rx_rate_limiter, nic.tx_rate_limiter)}
    mbit = limits.pop() if len(limits) == 1 else -1
    return Interface(name=nic.iface_id, tap=nic.host_dev_name, mac=nic.guest_mac or "", bandwidth_mbit=mbit)


def _limit(limiter: _Limiter | None) -> int | None:
    bucket = limiter.bandwidth if limiter else None
    return mbit_of(bucket.size, bucket.refill_time) if bucket else None
