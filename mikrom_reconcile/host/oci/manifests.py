"""What an image consists of: its index, manifest and configuration, as its documents say. Nothing is fetched here."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO, TypeVar

import msgspec

from mikrom_reconcile.core.model.encoding import UNREADABLE, ready
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

OS, ARCHITECTURE = "linux", "amd64"  # what the VMs of a host run: this project knows no other CPU

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")

_T = TypeVar("_T")
_LAYER = re.compile(r"application/vnd\.(oci\.image\.layer\.v1|docker\.image\.rootfs\.diff)\.tar([.+](gzip|zstd))?")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What an image was built for."""

    architecture: str = ""
    os: str = ""

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an image, named by its digest."""

    digest: str
    size: int
    media_type: str = msgspec.field(name="mediaType", default="")
    platform: Platform | None = None

    @property
    def sha256(self) -> str:
        """In hexadecimal. Raises FetchError where it is another algorithm's."""
        found = _DIGEST.fullmatch(self.digest)
        if found is None:
            raise FetchError(f"its digest {self.digest} is no sha256")
        return found[1]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """An index, which has `manifests`, or a manifest, which has the rest."""

    media_type: str = msgspec.field(name="mediaType", default="")
    manifests: tuple[Descriptor, ...] = ()
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()


class Process(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What an image says that runs in it."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None
    stop_signal: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """What it runs; empty where that is for others to say."""
        return (*(self.entrypoint or ()), *(self.cmd or ()))


class Tars(msgspec.Struct, frozen=True, kw_only=True):
    """The digests of the layers as they are once they are unpacked."""

    diff_ids: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of an image."""

    architecture: str = ""
    os: str = ""
    config: Process | None = None
    rootfs: Tars = Tars()


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer. `opened` gives its bytes, packed or not; unpacked, they have the digest `diff_id`."""

    diff_id: str
    opened: Callable[[], AbstractContextManager[BinaryIO]]


class ContainerImage(msgspec.Struct, frozen=True, kw_only=True):
    """All that a root disk is made of, the lowest layer first."""

    process: Process
    layers: tuple[Layer, ...]


def document_of(content: bytes) -> Document:
    """An index or a manifest. Raises FetchError."""
    document = decoded(content, Document)
    known = document.media_type in {"", *INDEXES, *MANIFESTS}
    if not known or (document.config is None and not document.manifests):
        what = document.media_type or "a document without layers"
        raise FetchError(f"it is no container image, but {what}")
    return document


def manifest_in(index: Document) -> Descriptor:
    """The manifest of an index that is for this platform. Raises FetchError."""
    wanted = Platform(architecture=ARCHITECTURE, os=OS)
    for descriptor in index.manifests:
        if descriptor.platform == wanted:
            return descriptor
    if len(index.manifests) == 1 and index.manifests[0].platform is None:  # the configuration tells its platform
        return index.manifests[0]
    there = ", ".join(sorted({str(found.platform) for found in index.manifests if found.platform})) or "none"
    raise FetchError(f"it is not there for {wanted}, which VMs here run; it is for {there}")


def config_of(content: bytes, layers: int) -> Config:
    """The configuration of an image of so many layers that can run here. Raises FetchError."""
    config = decoded(content, Config)
    named = len(config.rootfs.diff_ids)
    if (config.os, config.architecture) != (OS, ARCHITECTURE):
        what = f"it is for {config.os or '?'}/{config.architecture or '?'}"
        raise FetchError(f"{what}, and VMs here run {OS}/{ARCHITECTURE}")
    if named > CONTAINER_IMAGES.layers:
        raise FetchError(f"it has {named} layers, more than the {CONTAINER_IMAGES.layers} that are taken")
    if layers != named:
        raise FetchError(f"its manifest has {layers} layers, and its configuration names {named}: it is broken")
    return config


def layers_of(manifest: Document) -> tuple[Descriptor, ...]:
    """The layers, the lowest first. Raises FetchError."""
    for layer in manifest.layers:
        if not _LAYER.fullmatch(layer.media_type):
            raise FetchError(f"it has a layer of the kind {layer.media_type}, which cannot be unpacked")
    return manifest.layers


def decoded(content: bytes, kind: type[_T]) -> _T:
    """What a document of an image says. Raises FetchError."""
    try:
        return msgspec.json.decode(content, type=ready(kind))
    except UNREADABLE as error:
        raise FetchError(f"its {kind.__name__.lower()} cannot be read: {error}") from error
