"""What VMs boot: the images that documents describe, and the one that is built in. Nothing here fetches any. A
container image is the `source` of a root disk as `oci:registry/name` and `oci-layout:file:///folder` (the digest is
that of a manifest or an index), or as `docker-archive:file:///x.tar` from `docker save` (the digest of the file).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from mikrom_reconcile.core.model.desired import Boot, RootDisk, SecretRef, VMSpec
from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.parsing.variables import unescaped

REGISTRY, LAYOUT, ARCHIVE = "oci:", "oci-layout:", "docker-archive:"

_API = {"docker.io": "registry-1.docker.io"}
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/:=,.@+-_~")
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


def repository_of(text: str, mirrors: Mapping[str, str] | None = None) -> Repository:
    """The place of `registry/name[:tag]`, Docker's without a registry, or that of its mirror. Raises ValueError."""
    first, _, rest = text.partition("/")
    if not rest or not (set(first) & set(".:") or first == "localhost"):
        first, rest = "docker.io", text
    name = rest.removesuffix(f":{tag}") if (tag := tag_of(rest)) else rest
    if first == "docker.io" and "/" not in name:
        name = f"library/{name}"
    first, _, prefix = (mirrors or {}).get(first, _API.get(first, first)).partition("/")
    name = f"{prefix}/{name}" if prefix else name
    if not _HOST.fullmatch(first) or not _NAME.fullmatch(name):
        raise ValueError(f"{text} is no image of a registry: write registry/name, such as docker.io/library/nginx")
    return Repository(registry=first, name=name)


def tag_of(image: str) -> str:
    """The tag behind a name, in front of a digest; "" if there is none."""
    found = re.search(r":([\w.-]+)$", image.partition("@")[0])
    return found[1] if found else ""


def is_loopback(host: str) -> bool:
    """Whether a host, with a port or without, is this very one."""
    return _LOOPBACK.fullmatch(host) is not None


def is_container_image(source: str) -> bool:
    """Whether a root disk has to be made of it first."""
    return source.startswith((REGISTRY, LAYOUT, ARCHIVE))


def init_of(spec: VMSpec) -> Literal["", "mikrom", "image"]:
    """Who runs what a container image says; "" where the root disk is none of it, or `boot_args` name another init."""
    rootfs = spec.boot.rootfs if spec.boot else None
    if rootfs is None or not is_container_image(rootfs.source) or " init=" in f" {spec.boot_args}":
        return ""
    return rootfs.init


def init_words(spec: VMSpec) -> Iterator[str]:
    """What the kernel's arguments tell the first program, `guest/init.c`. A secret is only named."""
    init = init_of(spec)
    if not init:
        return
    yield "init=/.mikrom/init"
    if init == "image":
        yield "mikrom.init=/sbin/init"
    yield from (f"mikrom.arg={_quoted(word)}" for word in spec.command)
    for name, value in sorted(spec.env.items()):
        yield f"mikrom.secret={name}" if isinstance(value, SecretRef) else f"mikrom.env={name}={_quoted(value)}"
    devices = zip("bcdefghijklmnopqrstuvwxyz", sorted(spec.drives), strict=False)  # the root disk is /dev/vda
    mounts = [(spec.drives[drive].mount or "", letter) for letter, drive in devices]
    yield from (f"mikrom.mount=/dev/vd{letter}:{_quoted(mount)}" for mount, letter in sorted(mounts) if mount)


def _quoted(word: object) -> str:
    """A word without spaces and quotes: each byte that is not plain as %XX."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in str(word).encode())


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's name stands for. No `boot`: the built-in demo guest."""

    boot: Boot | None
    boot_args: str = ""


BUILT_IN = {"hello": Image(boot=None, boot_args="console=ttyS0")}
"""Images that need no document of their own: the demo guest prints its boot arguments and waits for Ctrl-Alt-Del."""


_ROOT_DISKS = {"source": "", "oci": REGISTRY, "oci_layout": LAYOUT, "docker_archive": ARCHIVE}
"""What a root disk is made of: a spec has one of these, and the record says which before what it says."""


def root_disk_flaw(rootfs: dict[str, Any]) -> str:
    """What is wrong with a root disk that its schema cannot see; "" if nothing is."""
    given = [key for key in _ROOT_DISKS if key in rootfs]
    if len(given) != 1:
        return f"a root disk has one of {', '.join(_ROOT_DISKS)}; this one has {' and '.join(given) or 'none'}"
    if "source" in rootfs and not rootfs.keys().isdisjoint({"size_mib", "init"}):
        return "size_mib and init are for disks that are made of container images"
    if rootfs.get("read_only") and "size_mib" in rootfs:
        return "what is read_only is as large as its image: leave size_mib out"
    if "oci" not in rootfs:
        return "" if "sha256" in rootfs else "sha256 is missing in spec.rootfs"
    if "sha256" in rootfs:
        return "the digest of a registry's image stands behind its name: leave sha256 out"
    try:
        repository_of(rootfs["oci"].partition("@")[0])
    except ValueError as error:
        return str(error)
    return ""


def _root_disk(rootfs: dict[str, Any]) -> RootDisk:
    key = next(key for key in _ROOT_DISKS if key in rootfs)
    source, _, digest = rootfs[key].partition("@sha256:") if key == "oci" else (rootfs[key], "", rootfs["sha256"])
    more = {key: rootfs[key] for key in ("read_only", "size_mib", "init") if key in rootfs}
    return RootDisk(source=_ROOT_DISKS[key] + source, sha256=digest, **more)


def image_of(spec: dict[str, Any]) -> Image:
    """The image that the `spec` of an Image document describes."""
    rootfs = spec.get("rootfs")
    disk = None if rootfs is None or root_disk_flaw(rootfs) else _root_disk(rootfs)  # of flaws is told elsewhere
    boot = msgspec.convert(spec | {"rootfs": disk}, ready(Boot))
    return Image(boot=boot, boot_args=unescaped(spec.get("boot_args", "")))
