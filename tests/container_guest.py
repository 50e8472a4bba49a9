"""A container image booted as a VM: the kernel of `linux_guest`, and an initramfs that only finds the root disk."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.linux_guest import LinuxGuest, built, entry, packed

INIT = """#!/bin/sh
mkdir -p /proc /dev /root-disk
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod /lib/$module.ko; done
ro=rw
for word in $(cat /proc/cmdline); do [ $word = ro ] && ro=ro; done
mount -t ext4 -o $ro /dev/vda /root-disk || echo "no root disk"
umount /proc
exec switch_root /root-disk /.mikrom/init
"""


def guest_for_root_disks(folder: Path) -> LinuxGuest:
    """Kernels that have virtio built in need no initramfs: Debian's has it as modules."""
    guest = built()
    initrd = folder / "initrd"
    more = packed(entry("init", 0o100755, INIT.encode()))
    initrd.write_bytes(guest.initrd.read_bytes() + more)  # the later of two files counts
    return replace(guest, initrd=initrd)


def busybox() -> bytes:
    """The static program in the guest's own initramfs."""
    return next(
        content for name, content in _files(gzip.decompress(built().initrd.read_bytes())) if name == "bin/busybox"
    )


def _files(archive: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(archive):
        size, length = int(archive[at + 54 : at + 62], 16), int(archive[at + 94 : at + 102], 16)
        begin = at + 110 + length + -(110 + length) % 4
        yield archive[at + 110 : at + 110 + length - 1].decode(), archive[begin : begin + size]
        at = begin + size + -size % 4
