"""The three places that a container image comes from: each part of it is fetched as a file that has its digest."""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

import msgspec

from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.core.specs.images import ARCHIVE, LAYOUT, REGISTRY
from mikrom_reconcile.host.oci import manifests
from mikrom_reconcile.host.oci.layers import Budget, opened_tar
from mikrom_reconcile.host.oci.manifests import ContainerImage, Layer, Process, config_of, document_of
from mikrom_reconcile.host.oci.registry import Registry
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.system.files import OddFileError, read_small
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

Fetch = Callable[[PinnedFile, Registry | None], Path]
"""Puts a file into the host's cache, unless it is there, from a registry, if it is one's, and checks its digest; where
it is then. Raises FetchError and OSError.
"""


class Saved(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """An image in a file of `docker save`."""

    config: str
    layers: tuple[str, ...]


def image_of(
    file: PinnedFile, fetch: Fetch, registry_of: Callable[[str], Registry], *, max_bytes: int
) -> ContainerImage:
    """The image, with all of its parts on this host. Raises FetchError and OSError."""
    if file.source.startswith(ARCHIVE):
        archive = PinnedFile(source=file.source.removeprefix(ARCHIVE), sha256=file.sha256)
        return _saved_image(fetch(archive, None), max_bytes)
    if file.source.startswith(LAYOUT):
        blobs = f"{file.source.removeprefix(LAYOUT).rstrip('/')}/blobs/sha256"
        return _assembled(
            file.sha256, lambda _, sha256: fetch(PinnedFile(source=f"{blobs}/{sha256}", sha256=sha256), None)
        )
    registry = registry_of(file.source.removeprefix(REGISTRY))

    def path_of(kind: str, sha256: str) -> Path:
        return fetch(PinnedFile(source=registry.url_of(kind, sha256), sha256=sha256), registry)

    return _assembled(file.sha256, path_of)


def _assembled(sha256: str, path_of: Callable[[str, str], Path]) -> ContainerImage:
    manifest = document_of(_read(path_of("manifests", sha256)))
    if manifest.config is None:
        manifest = document_of(_read(path_of("manifests", manifests.manifest_in(manifest).sha256)))
    if manifest.config is None:
        raise FetchError("its index leads to another index", lasting=True)
    config = config_of(_read(path_of("blobs", manifest.config.sha256)))
    layers = [
        Layer(diff_id=diff_id, opened=partial(_opened, path_of("blobs", layer.sha256)))
        for layer, diff_id in manifests.layers_of(manifest, config)
    ]
    return ContainerImage(process=config.config or Process(), layers=tuple(layers))


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _read(path: Path) -> bytes:
    try:
        return read_small(path, max_bytes=CONTAINER_IMAGES.document_bytes) or b""
    except OddFileError as error:
        raise FetchError(f"its manifest or configuration is none: {error}", lasting=True) from error


def _saved_image(archive: Path, max_bytes: int) -> ContainerImage:
    with _saved(archive, max_bytes) as tar:
        images = manifests.decoded(_content(tar, "manifest.json"), tuple[Saved, ...])
        if len(images) != 1:
            raise FetchError(f"the file has {len(images)} images: save one alone", lasting=True)
        config = config_of(_content(tar, images[0].config))
    names = images[0].layers
    if len(names) != len(config.rootfs.diff_ids):
        raise FetchError("its manifest and its configuration differ in the number of layers", lasting=True)
    layers = [
        Layer(diff_id=diff_id, opened=partial(_saved_layer, archive, name, max_bytes))
        for name, diff_id in zip(names, config.rootfs.diff_ids, strict=True)
    ]
    return ContainerImage(process=config.config or Process(), layers=tuple(layers))


@contextmanager
def _saved_layer(archive: Path, name: str, max_bytes: int) -> Iterator[BinaryIO]:
    with _saved(archive, max_bytes) as tar:
        yield _file(tar, name)  # type: ignore[misc]  # it seeks and reads


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    content = _file(tar, name).read(CONTAINER_IMAGES.document_bytes + 1)
    if len(content) > CONTAINER_IMAGES.document_bytes:
        raise FetchError(f"its {name} is too large", lasting=True)
    return content


@contextmanager
def _saved(archive: Path, max_bytes: int) -> Iterator[tarfile.TarFile]:
    budget = Budget(max_bytes, entries=CONTAINER_IMAGES.archive_members)
    with archive.open("rb") as content, opened_tar(content, budget, "r:") as (tar, _):
        yield tar


def _file(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    content = None
    with suppress(KeyError):  # also where it is a link that leads nowhere
        content = tar.extractfile(name)
    if content is None:
        raise FetchError(f"it is no file of `docker save`: {name} is not in it", lasting=True)
    return content
