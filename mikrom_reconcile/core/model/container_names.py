"""Where a container image is: the three ways a spec names one, as the `source` of a pinned file.

oci:registry/name              a registry; the digest is that of a manifest or an index
oci-layout:file:///folder      an OCI image layout; the same
docker-archive:file:///x.tar   what `docker save` writes; the digest is that of the file
"""

from __future__ import annotations

import re

import msgspec

from mikrom_reconcile.core.model.devices import Boot

REGISTRY, LAYOUT, ARCHIVE = "oci:", "oci-layout:", "docker-archive:"

_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?")
_NAME = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?")


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """A name in a registry. `registry` is a host with its port, if that is not 443."""

    registry: str
    name: str

    @property
    def url(self) -> str:
        """Where its API is. Only a registry on this very host is spoken to without TLS, as other tools do it."""
        scheme = "http" if is_loopback(self.registry) else "https"
        return f"{scheme}://{self.registry}/v2/{self.name}"


def repository_of(text: str) -> Repository:
    """What `registry/name` says; without a registry it is Docker's. A tag behind it says nothing beside a digest.

    Raises ValueError.
    """
    first, _, rest = text.partition("/")
    if not rest or not (set(first) & set(".:") or first == "localhost"):
        first, rest = "docker.io", text
    name = re.sub(r":[\w.-]+$", "", rest)
    if first == "docker.io":
        first, name = "registry-1.docker.io", name if "/" in name else f"library/{name}"
    if not _HOST.fullmatch(first) or not _NAME.fullmatch(name):
        raise ValueError(f"{text} is no image of a registry: write registry/name, such as docker.io/library/nginx")
    return Repository(registry=first, name=name)


def is_loopback(host: str) -> bool:
    """Whether a host, with a port or without, is this very one."""
    return _LOOPBACK.fullmatch(host) is not None


def is_container_image(source: str) -> bool:
    """Whether a root disk has to be made of it first."""
    return source.startswith((REGISTRY, LAYOUT, ARCHIVE))


def init_argument(boot: Boot | None, boot_args: str) -> str:
    """The init that a root disk of a container image has, for the kernel, unless `boot_args` name the image's own."""
    is_ours = boot is not None and boot.rootfs is not None and is_container_image(boot.rootfs.source)
    return "init=/.mikrom/init" if is_ours and " init=" not in f" {boot_args}" else ""
