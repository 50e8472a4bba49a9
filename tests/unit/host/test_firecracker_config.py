"""What Firecracker is told, and what is made of its answer, in the words of its published API.

The contract tries them with each release that knows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mikrom_reconcile.core.model.desired import MmdsConfig, VMSpec
from mikrom_reconcile.host.drivers.firecracker_config import Config, interface_of, requests
from mikrom_reconcile.host.resources.networks import Interface
from mikrom_reconcile.host.resources.provisioner import VMResources

CPU = {"cpuid_modifiers": [], "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}]}


def told(spec: VMSpec, mtu: int | None = None) -> dict[str, Any]:
    nic = Interface(name="eth0", tap="mk0", mac="06:00:00:00:00:01", mtu=mtu)
    resources = VMResources(kernel=Path("/k"), interfaces=(nic,), metadata={"role": "web"})
    return {path: content for path, content, _ in requests(spec, resources)}


def test_a_release_that_does_not_know_a_field_is_never_told_of_it() -> None:
    sent = told(VMSpec(image="web"))
    assert "/cpu-config" not in sent
    assert "mtu" not in sent["/network-interfaces/eth0"]
    assert sent["/mmds/config"] == {"version": "V2", "network_interfaces": ["eth0"]}


def test_fields_of_later_releases_are_sent_where_they_are_written() -> None:
    sent = told(VMSpec(image="web", cpu_config=CPU, mmds_config=MmdsConfig(imds_compat=True)), mtu=1400)
    assert [*sent][:2] == ["/machine-config", "/cpu-config"], "the machine would take the template away again"
    assert sent["/cpu-config"] == CPU
    assert sent["/network-interfaces/eth0"]["mtu"] == 1400
    assert sent["/mmds/config"]["imds_compat"] is True


@pytest.mark.parametrize(("more", "compat", "mtu"), [({"imds_compat": True}, True, 1400), ({}, False, None)])
def test_what_a_vmm_says_of_them_is_read(more: dict[str, Any], compat: bool, mtu: int | None) -> None:  # noqa: FBT001
    said = {
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "boot-source": {"boot_args": ""},
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "mk0", "guest_mac": None, "mtu": mtu}],
        "mmds-config": {"version": "V2", "network_interfaces": ["eth0"], "ipv4_address": None, **more},
    }
    config = msgspec.json.decode(msgspec.json.encode(said), type=Config)
    assert config.mmds_config == MmdsConfig(imds_compat=compat)
    assert interface_of(config.network_interfaces[0]).mtu == mtu
