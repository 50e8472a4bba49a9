"""What a VM boots from, stores on and talks through: prepared for every driver that runs real VMMs, and collected."""

import logging
import os
import stat
import time
from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.core.model.errors import MikromError, PermanentError
from mikrom_reconcile.core.specs.images import init_of, init_words
from mikrom_reconcile.core.specs.validate_vms import METADATA_OF_HOST, SECRET_REF
from mikrom_reconcile.host.errors import translate_errors
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.disks import Disk, Disks
from mikrom_reconcile.host.resources.images import ImageCache, image_uses
from mikrom_reconcile.host.resources.networks import Interface, Networks, mac_of
from mikrom_reconcile.system.download import FetchError, local_file
from mikrom_reconcile.times_and_sizes import IMAGES

_log = logging.getLogger(__name__)


class Secrets:
    """What this host may read: `file://` below `folders`, and the variables `names` by `env://`. A secret is never
    kept, reported or logged: what goes wrong names the reference alone.
    """

    def __init__(
        self, folders: tuple[Path, ...] = (), names: tuple[str, ...] = (), environ: Mapping[str, str] = os.environ
    ) -> None:
        self._folders = folders or (Path("/etc/mikrom/secrets"),)
        self._names, self._environ = names, environ

    def resolved(self, value: Any) -> Any:
        """`value` with each reference in it replaced by its secret. Raises PermanentError."""
        if isinstance(value, dict):
            if value.keys() == {SECRET_REF}:
                return self._secret(str(value[SECRET_REF]))
            return {key: self.resolved(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.resolved(item) for item in value]
        return value

    def _secret(self, reference: str) -> str:
        parts = urlsplit(reference)
        if parts.scheme == "file":
            return self._of_file(reference, unquote(parts.path))
        if parts.scheme != "env":
            raise PermanentError(f"{reference} is no secret's reference: begin with file:/// or env://")
        name = parts.netloc
        if name not in self._names:
            raise PermanentError(f"{reference}: MIKROM_SECRET_ENV of this host does not name {name}")
        if name not in self._environ:
            raise PermanentError(f"{reference}: this host's worker has no variable {name}")
        return self._environ[name]

    def _of_file(self, reference: str, path: str) -> str:
        try:
            with local_file(path, self._folders, "MIKROM_SECRET_DIRS") as content:
                text = content.read(IMAGES.secret_bytes + 1).decode()
        except (FetchError, OSError) as error:
            raise PermanentError(str(error)) from error
        except UnicodeDecodeError as error:
            raise PermanentError(f"{reference} is not UTF-8 text") from error
        if len(text) > IMAGES.secret_bytes:
            raise PermanentError(f"{reference} has more than {IMAGES.secret_bytes >> 10} KiB")
        return text.removesuffix("\n")


def boot_args_of(record: VMRecord) -> str:
    """The kernel's command line, with the address of the first interface for guests that have no other way to it."""
    spec = record.spec
    words = [spec.boot_args, *init_words(spec)]
    name = min(spec.network_interfaces, default=None)
    ip = record.addresses.get(name) if name else None
    if name is not None and ip is not None and " ip=" not in f" {spec.boot_args}":
        nic = spec.network_interfaces[name]
        words.append(f"ip={ip}::{nic.gateway}:{IPv4Network(nic.cidr).netmask}:{record.home}:eth0:off")
    return " ".join(filter(None, words))


class VMResources(msgspec.Struct, frozen=True, kw_only=True):
    """What a VMM is started with. The root disk is the first of the disks, if there is one."""

    kernel: Path
    initrd: Path | None = None
    boot_args: str = ""
    disks: tuple[Disk, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    metadata: dict[str, Any] | None = None


class ResourceProvisioner:
    """Makes what VMs of one state folder need. The caller holds the VM's action lock."""

    def __init__(
        self,
        state_dir: Path,
        *,
        images: ImageCache | None = None,
        secrets: Secrets | None = None,
        drive_dirs: tuple[Path, ...] = (),
    ) -> None:
        state_dir = state_dir.resolve()
        self.images = images or ImageCache(state_dir)
        self.disks = Disks(state_dir, drive_dirs)
        self.networks = Networks(state_dir)
        self._secrets = secrets or Secrets()

    def prepare(self, record: VMRecord, *, give_up_at: float, unpacked_kernel: bool = False) -> VMResources:
        """Fetch images, make disks and links as the spec says. Raises ActionErrors and OSErrors."""
        vm, boot, initrd, rootfs = record.vm, record.spec.boot, None, None
        metadata, boot_args = self.metadata_of(record), boot_args_of(record)
        if boot is None:
            kernel = self.images.hello()
        else:
            kernel = self._fetched(vm, "kernel", boot.kernel, give_up_at, unpacked=unpacked_kernel)
            if boot.initrd:
                initrd = self._fetched(vm, "initrd", boot.initrd, give_up_at)
            if boot.rootfs:
                rootfs = self._fetched(vm, "root disk's image", boot.rootfs, give_up_at)
                _check_command(record, rootfs)
        with translate_errors(vm, "making its disks"):
            disks = self.disks.prepare(record, rootfs, give_up_at=give_up_at)
        return VMResources(
            kernel=kernel,
            initrd=initrd,
            disks=disks,
            interfaces=self.networks.prepare(record, give_up_at=give_up_at),
            boot_args=boot_args,
            metadata=metadata,
        )

    def _fetched(self, vm: str, what: str, file: PinnedFile, give_up_at: float, *, unpacked: bool = False) -> Path:
        with translate_errors(vm, f"fetching its {what}"):
            return self.images.fetched(file, give_up_at=give_up_at, unpacked=unpacked)

    def metadata_of(self, record: VMRecord) -> dict[str, Any] | None:
        """What the guest can read of itself: its spec's `mmds`, secrets in place, and who and where it is; None for
        nothing. Raises PermanentError.
        """
        if not record.spec.has_metadata:
            return None
        ips = record.addresses
        interfaces = {
            name: {"ip": ips.get(name), "mac": mac_of(record, name), "cidr": nic.cidr, "gateway": nic.gateway}
            for name, nic in sorted(record.spec.network_interfaces.items())
        }
        own: dict[str, Any] = {"name": record.vm, "fleet": record.fleet, "project": record.project}
        own["network_interfaces"] = interfaces
        with translate_errors(record.vm, "resolving its secrets"):
            said: dict[str, Any] = self._secrets.resolved(record.spec.mmds or {})
            if record.spec.secret_env:
                own["env"] = self._secrets.resolved(record.spec.secret_env)
        return {METADATA_OF_HOST: own} | said

    def disks_of(self, record: VMRecord) -> tuple[Disk, ...]:
        """The VM's disks as they are once they are prepared."""
        rootfs = record.spec.boot and record.spec.boot.rootfs
        return self.disks.of(record, self.images.path_of(rootfs) if rootfs else None)

    def remove(self, record: VMRecord, *, give_up_at: float) -> None:
        """Remove what was made for this VM alone, but the drives that are to be retained."""
        self.disks.remove(record)
        self.networks.remove(record, give_up_at=give_up_at)


def _check_command(record: VMRecord, rootfs: Path) -> None:
    """Raise PermanentError where neither the image nor the VM says what runs."""
    if init_of(record.spec) == "mikrom" and not record.spec.command and not rootfs.stat().st_mode & stat.S_IXUSR:
        message = "its image has neither an ENTRYPOINT nor a CMD: write in its template which command it runs"
        raise PermanentError(message, vm=record.vm, step="looking at its image")


class GarbageCollector:
    """Removes what no VM of one host uses any more: images, and taps that leaked. An image goes a day after the last VM
    that names it, or after somebody fetched it in advance and no VM came. While any record cannot be read, no image
    goes: the VM behind it may need all of them.
    """

    def __init__(self, host: str, images: ImageCache, records: Records) -> None:
        self._host, self._images, self._records = host, images, records
        self._run_at = 0.0

    def run(self) -> None:
        """Collect, once an hour at most. What is in the way stands in the log."""
        if time.monotonic() < self._run_at:
            return
        self._run_at = time.monotonic() + IMAGES.sweep_interval_s
        work = ("taps that no record wants, of", self._taps), ("images that nobody used:", self._unused_images)
        for what, collect in work:
            try:
                if removed := collect():
                    _log.info("removed %s %s", what, ", ".join(removed), extra={"host": self._host})
            except (MikromError, OSError) as error:
                _log.warning("cannot remove %s %s", what, error, extra={"host": self._host})

    def _taps(self) -> tuple[str, ...]:
        """A tap outlives its VM if somebody removed the VM's record, and its place in the spec by a restart."""
        networks = Networks(self._records.state_dir.resolve())
        return networks.sweep(give_up_at=time.monotonic() + IMAGES.sweep_wait_s)

    def _unused_images(self) -> tuple[str, ...]:
        uses, is_whole = image_uses(self._records)
        return self._images.sweep(frozenset(uses)) if is_whole else ()
