"""What a VM boots from, stores on and talks through: prepared for every driver that runs real VMMs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile.core.model.devices import PinnedFile
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.disks import Disk, Disks
from mikrom_reconcile.host.resources.download import FetchError
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.host.resources.metadata import SecretError, Secrets, metadata_of
from mikrom_reconcile.host.resources.networks import Interface, Networks, boot_args_of
from mikrom_reconcile.limits import IMAGES


class VMResources(msgspec.Struct, frozen=True, kw_only=True):
    """What a VMM is started with. The root disk is the first of the disks, if there is one."""

    kernel: Path
    initrd: Path | None = None
    boot_args: str = ""
    disks: tuple[Disk, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    metadata: dict[str, Any] | None = None


class ResourceProvisioner:
    """Makes what VMs of one state folder need. The caller holds the VM's action lock.

    `file://` images come from `folders` only, and have `max_mib` at most.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        folders: tuple[Path, ...] = (),
        max_mib: int = IMAGES.max_mib,
        secrets: Secrets | None = None,
    ) -> None:
        state_dir = state_dir.resolve()
        self._images = ImageCache(state_dir, folders=folders, max_mib=max_mib)
        self._disks = Disks(state_dir)
        self.networks = Networks(state_dir)
        self._secrets = secrets or Secrets()

    def prepare(self, record: VMRecord, *, give_up_at: float) -> VMResources:
        """Fetch images, make disks and links as the spec says. Raises ActionErrors and OSErrors."""
        boot = record.spec.boot
        if boot is None:
            kernel, initrd, rootfs = self._images.hello(), None, None
        else:
            kernel = self._fetched(record.vm, boot.kernel, "kernel", give_up_at)
            initrd = self._fetched(record.vm, boot.initrd, "initrd", give_up_at) if boot.initrd else None
            rootfs = self._fetched(record.vm, boot.rootfs, "root disk's image", give_up_at) if boot.rootfs else None
        metadata = self.metadata_of(record)
        self._disks.prepare(record, rootfs)
        self.networks.prepare(record, give_up_at=give_up_at)
        return VMResources(
            kernel=kernel,
            initrd=initrd,
            boot_args=boot_args_of(record),
            disks=self._disks.of(record, rootfs),
            interfaces=self.networks.of(record),
            metadata=metadata,
        )

    def metadata_of(self, record: VMRecord) -> dict[str, Any] | None:
        """What the guest can read of itself. Raises PermanentError."""
        try:
            return metadata_of(record, self._secrets)
        except SecretError as error:
            raise PermanentError(str(error), vm=record.vm, step="resolving its secrets") from error

    def disks_of(self, record: VMRecord) -> tuple[Disk, ...]:
        """The VM's disks as they are once they are prepared."""
        rootfs = record.spec.boot and record.spec.boot.rootfs
        return self._disks.of(record, self._images.path_of(rootfs) if rootfs else None)

    def remove(self, record: VMRecord, *, give_up_at: float) -> None:
        """Remove what was made for this VM alone, but the drives that are to be retained."""
        self._disks.remove(record)
        self.networks.remove(record, give_up_at=give_up_at)

    def _fetched(self, vm: str, file: PinnedFile, what: str, give_up_at: float) -> Path:
        try:
            return self._images.fetched(file, give_up_at=give_up_at)
        except FetchError as error:
            kind = PermanentError if error.lasting else TemporaryError
            raise kind(str(error), vm=vm, step=f"fetching its {what}") from error
