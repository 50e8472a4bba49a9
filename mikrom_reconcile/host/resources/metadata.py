"""What a guest can read of itself: what its spec says under `mmds`, with secrets in place, and who and where it is."""

from __future__ import annotations

from typing import Any

from mikrom_reconcile.core.specs.validate_vms import METADATA_OF_HOST
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.networks import mac_of
from mikrom_reconcile.host.resources.secrets import Secrets


def metadata_of(record: VMRecord, secrets: Secrets) -> dict[str, Any] | None:
    """The metadata of a VM, None if it has none. Raises SecretError."""
    if record.spec.mmds is None:
        return None
    interfaces = {
        name: {"ip": record.addresses.get(name), "mac": mac_of(record, name), "cidr": nic.cidr, "gateway": nic.gateway}
        for name, nic in sorted(record.spec.network_interfaces.items())
    }
    own = {"name": record.vm, "fleet": record.fleet, "project": record.project, "network_interfaces": interfaces}
    said: dict[str, Any] = secrets.resolved(record.spec.mmds)
    return {METADATA_OF_HOST: own} | said
