"""Which files of images which host may need, from the specs alone: what is to be there before a VM is."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from mikrom_reconcile.core.model.devices import Boot, PinnedFile
from mikrom_reconcile.core.placement.scheduler import Scheduler
from mikrom_reconcile.core.specs.expand import expand
from mikrom_reconcile.core.specs.load import Specs
from mikrom_reconcile.core.specs.resolve import Resolver


class ImageFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an image. `part` is its key in the Image document: kernel, initrd or rootfs."""

    image: str
    part: str
    source: str
    sha256: str

    @property
    def pinned(self) -> PinnedFile:
        """What a host has to know to fetch it."""
        return PinnedFile(source=self.source, sha256=self.sha256)


def named_files(specs: Specs) -> tuple[ImageFile, ...]:
    """The files of all images that documents describe, by image."""
    images = sorted(specs.images.items())
    return tuple(file for name, image in images if image.boot for file in _files_of(name, image.boot))


def files_by_host(specs: Specs, *, here: str) -> dict[str, tuple[ImageFile, ...]]:
    """For each host the files of every VM that it may get, sorted. Raises SpecError."""
    scheduler, resolver = Scheduler(specs, here, located={}), Resolver(specs)
    found: dict[str, set[ImageFile]] = {host: set() for host in scheduler.hosts}
    for vm in expand(specs):
        for host in scheduler.eligible_hosts(vm):
            state, spec = resolver.resolve(vm, host)
            if state != "absent" and spec.boot:
                found[host].update(_files_of(spec.image, spec.boot))
    resolver.check()
    return {host: tuple(sorted(files, key=lambda file: (file.image, file.part))) for host, files in found.items()}


def _files_of(image: str, boot: Boot) -> Iterator[ImageFile]:
    for part, file in boot.files().items():
        yield ImageFile(image=image, part=part, source=file.source, sha256=file.sha256)
