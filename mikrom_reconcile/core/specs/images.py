"""What VMs boot: the images that documents describe, and the one that is built in. Nothing here fetches any."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.container_names import ARCHIVE, LAYOUT, REGISTRY, repository_of
from mikrom_reconcile.core.model.devices import Boot, RootDisk
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.parsing.variables import unescaped


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's name stands for. No `boot`: the built-in demo guest."""

    boot: Boot | None
    boot_args: str = ""


BUILT_IN = {"hello": Image(boot=None, boot_args="console=ttyS0")}
"""Images that need no document of their own: the demo guest prints its boot arguments and waits for Ctrl-Alt-Del."""


_ROOT_DISKS = ("source", "oci", "oci_layout", "docker_archive")
"""What a root disk is made of: a spec has one of these."""


def root_disk_flaw(rootfs: dict[str, Any]) -> str:
    """What is wrong with a root disk that its schema cannot see; "" if nothing is."""
    given = [key for key in _ROOT_DISKS if key in rootfs]
    if len(given) != 1:
        return f"a root disk has one of {', '.join(_ROOT_DISKS)}; this one has {' and '.join(given) or 'none'}"
    if "oci" not in rootfs:
        return "" if "sha256" in rootfs else "sha256 is missing in spec.rootfs"
    if "sha256" in rootfs:
        return "the digest of a registry's image stands behind its name: leave sha256 out"
    try:
        repository_of(rootfs["oci"].partition("@")[0])
    except ValueError as error:
        return str(error)
    return ""


def _root_disk(rootfs: dict[str, Any]) -> RootDisk | None:
    """None for one with a flaw, of which is told elsewhere."""
    if root_disk_flaw(rootfs):
        return None
    key = next(key for key in _ROOT_DISKS if key in rootfs)
    source, _, digest = rootfs[key].partition("@sha256:") if key == "oci" else (rootfs[key], "", rootfs["sha256"])
    prefix = {"source": "", "oci": REGISTRY, "oci_layout": LAYOUT, "docker_archive": ARCHIVE}[key]
    return RootDisk(source=prefix + source, sha256=digest, read_only=rootfs.get("read_only", False))


def image_of(spec: dict[str, Any]) -> Image:
    """The image that the `spec` of an Image document describes."""
    boot = msgspec.convert({key: value for key, value in spec.items() if key != "rootfs"}, ready(Boot))
    if "rootfs" in spec:
        boot = replace(boot, rootfs=_root_disk(spec["rootfs"]))
    return Image(boot=boot, boot_args=unescaped(spec.get("boot_args", "")))
