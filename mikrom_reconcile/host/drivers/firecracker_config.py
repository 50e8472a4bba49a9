"""What Firecracker is told of a VM, request by request, and what it says of its configuration, in our words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Balloon, DriveRateLimiter, Machine, MmdsConfig, VMSpec, Vsock
from mikrom_reconcile.core.specs import validate_vms
from mikrom_reconcile.host.resources.disks import Disk
from mikrom_reconcile.host.resources.networks import Interface
from mikrom_reconcile.host.resources.provisioner import VMResources
from mikrom_reconcile.times_and_sizes import VMMS

_BYTES_A_MBIT = 125_000

Request = tuple[str, dict[str, object], str]  # path, content, and what is being done, in words


_Limiter = dict[str, dict[str, int | None] | None]


class _Drive(msgspec.Struct):
    drive_id: str
    path_on_host: str | None = None
    is_read_only: bool | None = None
    is_root_device: bool | None = None
    rate_limiter: _Limiter | None = None


class _Nic(msgspec.Struct):
    iface_id: str
    host_dev_name: str
    guest_mac: str | None = None
    mtu: int | None = None
    rx_rate_limiter: _Limiter | None = None
    tx_rate_limiter: _Limiter | None = None


class Config(msgspec.Struct, rename="kebab"):
    """What `GET /vm/config` says, as far as it is compared."""

    machine_config: Machine
    boot_source: dict[str, Any]
    drives: tuple[_Drive, ...] = ()
    network_interfaces: tuple[_Nic, ...] = ()
    entropy: dict[str, Any] | None = None
    vsock: Vsock | None = None
    balloon: Balloon | None = None
    mmds_config: MmdsConfig | None = None


def requests(spec: VMSpec, resources: VMResources) -> Iterator[Request]:
    """What configures a VMM that is to boot, in order, but for `devices` and `START`."""
    machine: dict[str, object] = msgspec.to_builtins(spec.machine)
    if spec.machine.cpu_template is None:
        del machine["cpu_template"]
    yield "/machine-config", machine, "configuring the machine"
    if spec.cpu_config:
        yield "/cpu-config", spec.cpu_config, "configuring the CPU"
    boot_source: dict[str, object] = {"kernel_image_path": str(resources.kernel), "boot_args": resources.boot_args}
    if resources.initrd is not None:
        boot_source["initrd_path"] = str(resources.initrd)
    yield "/boot-source", boot_source, "configuring the boot source"
    for disk in resources.disks:
        drive: dict[str, object] = {
            "drive_id": disk.name,
            "path_on_host": str(disk.path),
            "is_root_device": disk.is_root,
            "is_read_only": disk.read_only,
            "cache_type": "Writeback",  # the default, Unsafe, takes no flush from a guest: its fsync does nothing
            "rate_limiter": limiter_of(disk.rate_limiter),
        }
        yield f"/drives/{disk.name}", drive, f"configuring the disk {disk.name}"
    for interface in resources.interfaces:
        nic: dict[str, object] = {"host_dev_name": interface.tap, "guest_mac": interface.mac}
        nic |= {"iface_id": interface.name} | rate_limiters(interface)
        if interface.mtu:
            nic["mtu"] = interface.mtu
        yield f"/network-interfaces/{interface.name}", nic, f"configuring the interface {interface.name}"
    if resources.metadata is not None:
        service: dict[str, object] = {"version": "V2", "network_interfaces": [nic.name for nic in resources.interfaces]}
        if spec.mmds_config.imds_compat:
            service["imds_compat"] = True
        yield "/mmds/config", service, "configuring the metadata service"
        yield "/mmds", resources.metadata, "giving the guest its metadata"


START: Request = "/actions", {"action_type": "InstanceStart"}, "starting the guest"


def devices(spec: VMSpec, vsock: str, most: int) -> Iterator[Request]:
    """What comes last: where interrupts run out, a guest goes without `entropy`, which nobody may have asked for."""
    if spec.vsock:
        yield "/vsock", {"guest_cid": spec.vsock.guest_cid, "uds_path": vsock}, "configuring the vsock"
    if spec.balloon:
        yield "/balloon", msgspec.to_builtins(spec.balloon), "configuring the balloon"
    if validate_vms.gets_entropy(spec, most):
        yield "/entropy", {}, "configuring the source of random numbers"


def rate_limiters(interface: Interface) -> dict[str, object]:
    """What makes them carry that much in each direction; without a limit, what takes one away."""
    limiter = {"bandwidth": _bucket(interface.bandwidth_mbit, _BYTES_A_MBIT)}
    return {f"{direction}_rate_limiter": limiter for direction in ("rx", "tx")}


def limiter_of(wanted: DriveRateLimiter) -> dict[str, object]:
    """What limits a drive; a bucket of nothing takes a limit away."""
    return {"bandwidth": _bucket(wanted.bandwidth_mbit, _BYTES_A_MBIT), "ops": _bucket(wanted.ops, 1)}


def _bucket(amount: int | None, unit: int) -> dict[str, int]:
    return {"size": amount * unit, "refill_time": VMMS.rate_refill_ms} if amount else {"size": 0, "refill_time": 0}


def disk_of(drive: _Drive) -> Disk:
    """What the VMM has opened, under the path that it knows."""
    limiter = DriveRateLimiter(
        bandwidth_mbit=_amount(drive.rate_limiter, "bandwidth", _BYTES_A_MBIT),
        ops=_amount(drive.rate_limiter, "ops", 1),
    )
    flags = {"read_only": bool(drive.is_read_only), "is_root": bool(drive.is_root_device)}
    return Disk(name=drive.drive_id, path=Path(drive.path_on_host or ""), rate_limiter=limiter, **flags)


def interface_of(nic: _Nic) -> Interface:
    """What the VMM has; a limit that only one direction has is none that we gave it."""
    limiters = nic.rx_rate_limiter, nic.tx_rate_limiter
    limits = {_amount(limiter, "bandwidth", _BYTES_A_MBIT) for limiter in limiters}
    mbit = limits.pop() if len(limits) == 1 else -1
    tap, mac = nic.host_dev_name, nic.guest_mac or ""
    return Interface(name=nic.iface_id, tap=tap, mac=mac, bandwidth_mbit=mbit, mtu=nic.mtu)


def _amount(limiter: _Limiter | None, kind: str, unit: int) -> int | None:
    bucket = (limiter or {}).get(kind) or {}
    size, refill_ms = bucket.get("size") or 0, bucket.get("refill_time")
    return size * VMMS.rate_refill_ms // (refill_ms * unit) if refill_ms else None
