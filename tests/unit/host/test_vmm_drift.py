"""Where a VMM differs from the spec that it should run: as it tells of itself, beside its record."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Drive, Machine, NetworkInterface, VMSpec
from mikrom_reconcile.core.model.observed import Drift
from mikrom_reconcile.host.drivers.qemu import QemuDriver
from mikrom_reconcile.host.drivers.vmm_driver import Answer
from mikrom_reconcile.host.ports import drift_in
from tests.fakes import SPEC
from tests.unit.host.test_observe import record_of


@pytest.fixture
def driver(tmp_path: Path) -> QemuDriver:
    return QemuDriver(Path("qemu"), state_dir=tmp_path, run_dir=tmp_path)


def drift(driver: QemuDriver, spec: VMSpec, answer: Answer) -> tuple[Drift, ...]:
    record = replace(record_of("web-000"), spec=spec)
    return drift_in(driver._compared(record, answer, driver._layout.of(record.home)))


def test_drift_names_each_field_in_which_a_vmm_differs(driver: QemuDriver) -> None:
    answer = Answer(status="running", machine=Machine(vcpu_count=2, mem_size_mib=16), boot_args="loud")
    assert drift(driver, SPEC, answer) == (
        Drift(path="machine.vcpu_count", recorded=1, actual=2),
        Drift(path="machine.mem_size_mib", recorded=4, actual=16),
        Drift(path="boot_args", recorded="quiet", actual="loud"),
    )
    assert drift(driver, SPEC, Answer(status="running", machine=SPEC.machine, boot_args=SPEC.boot_args)) == ()


def test_a_vm_that_was_started_before_there_was_entropy_is_as_it_was_ordered(driver: QemuDriver) -> None:
    assert drift(driver, SPEC, Answer(status="running")) == ()
    with_entropy = Answer(status="running", entropy=True)
    assert drift(driver, replace(SPEC, entropy=False), with_entropy) == (
        Drift(path="entropy", recorded=False, actual=True),
    )


def test_a_disk_that_is_not_open_or_another_files_is_drift(driver: QemuDriver) -> None:
    spec = replace(SPEC, drives={"data": Drive(size_mib=1), "logs": Drive(size_mib=1)})
    record = replace(record_of("web-000"), spec=spec)
    data, logs = driver._provisioner.disks_of(record)
    there = {"data": replace(data, read_only=True), "logs": replace(logs, path=Path("/other"))}
    assert drift(driver, spec, Answer(status="running", disks=there)) == (
        Drift(path="drives.data.read_only", recorded=False, actual=True),
        Drift(path="drives.logs", recorded="logs", actual=None),
    )


def test_an_interface_and_a_metadata_service_that_were_configured_otherwise_are_drift(
    driver: QemuDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    nic = NetworkInterface(network="prod", cidr="10.0.0.0/24", gateway="10.0.0.1", mtu=1400)
    spec = replace(SPEC, network_interfaces={"eth0": nic, "eth1": nic})
    networks = driver._provisioner.networks
    eth0, eth1 = networks.of(replace(record_of("web-000"), spec=spec))
    monkeypatch.setattr(networks, "in_place", networks.of)
    there = {"eth0": replace(eth0, bandwidth_mbit=8, mtu=1500), "eth1": replace(eth1, tap="other")}
    answer = Answer(status="running", interfaces=there, imds_compat=True)
    assert drift(driver, spec, answer) == (
        Drift(path="network_interfaces.eth0.rate_limiter.bandwidth_mbit", recorded=None, actual=8),
        Drift(path="network_interfaces.eth0.mtu", recorded=1400, actual=1500),
        Drift(path="network_interfaces.eth1", recorded="prod", actual=None),
        Drift(path="mmds_config.imds_compat", recorded=False, actual=True),
    )
