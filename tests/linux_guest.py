"""A real Linux guest for tests: Debian's cloud kernel, and an initramfs of busybox that says and serves what it finds.

Both come from Debian packages that are unpacked, not installed; what was built stays in a cache folder. The guest

- counts its boots on the root disk (ext4) and on each drive (in its first bytes): `MIKROM-BOOTS rootfs 1`;
- takes the address of the kernel's `ip=` argument and serves its name over HTTP on port 80, and its metadata;
- says `MIKROM-LINUX up`, and ends at Ctrl-Alt-Del, after `MIKROM-LINUX bye`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KERNEL_PACKAGE = "linux-image-cloud-amd64"
PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb", "mkfs.ext4", "qemu-system-x86_64")
"""What has to be installed for it."""

BOOT_ARGS = "console=ttyS0 reboot=k panic=-1 quiet"
"""reboot=k ends the VM by the keyboard controller, as Firecracker wants it."""

MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio"),
    *("failover", "net_failover", "virtio_net", "virtio_blk"),
)
"""In the order in which they need each other."""

INITTAB = """::sysinit:/rc
::respawn:/bin/sleep 86400
::ctrlaltdel:/leave
"""

LEAVE = """#!/bin/sh
echo MIKROM-LINUX bye
sync
umount /root-disk 2>/dev/null
exec reboot -f
"""

RC = r"""#!/bin/sh
mkdir -p /proc /sys /root-disk /www
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
for module in $(cat /modules); do insmod /lib/$module.ko; done

ip= root=
for word in $(cat /proc/cmdline); do
    case $word in ip=*) ip=${word#ip=} ;; root=*) root=${word#root=} ;; esac
done

if [ -n "$root" ] && mount -t ext4 "$root" /root-disk; then
    echo boot >>/root-disk/boots
    sync
    echo "MIKROM-BOOTS rootfs $(grep -c . /root-disk/boots)"
fi
for disk in /sys/block/vd*; do
    name=$(cat "$disk/serial" 2>/dev/null)
    disk=/dev/${disk##*/}
    [ "$disk" != "$root" ] && [ -b "$disk" ] || continue
    if [ "$name" = mmds ]; then
        head -n 1 "$disk" >/www/metadata
        continue
    fi
    boots=$(($(head -c 8 "$disk" | tr -dc 0-9 | sed 's/^0*//') + 1))
    printf '%08d' "$boots" | dd of="$disk" conv=notrunc,fsync 2>/dev/null
    echo "MIKROM-BOOTS $name $boots"
done

if [ -n "$ip" ]; then # client::gateway:netmask:hostname:device:off
    IFS=: read -r client _ gateway netmask name device _ <<END
$ip
END
    hostname "${name:-guest}"
    ifconfig lo up
    ifconfig "${device:-eth0}" "$client" netmask "$netmask" up
    [ -z "$gateway" ] || route add default gw "$gateway"
    hostname >/www/index.html
    httpd -p 80 -h /www
    echo "MIKROM-ADDRESS $client"
fi
echo MIKROM-LINUX up
"""


@dataclass(frozen=True)
class LinuxGuest:
    """The files that an Image document names."""

    kernel: Path
    initrd: Path


def built(folder: Path | None = None) -> LinuxGuest:
    """The guest, built if it is not in `folder` (else the user's cache) yet. Takes seconds, and the network once."""
    cache = folder or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mikrom-tests"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    guest = LinuxGuest(kernel=cache / f"linux-{recipe}.bzimage", initrd=cache / f"linux-{recipe}.cpio.gz")
    if not (guest.kernel.exists() and guest.initrd.exists()):
        unpacked = cache / f"unpacked.{os.getpid()}"
        unpacked.mkdir(parents=True)
        try:
            _build(unpacked, guest)
        finally:
            shutil.rmtree(unpacked)
    return guest


def make_rootfs(path: Path, *, size_mib: int = 8) -> Path:
    """An empty ext4 file system, to be the image of root disks."""
    with path.open("wb") as image:
        image.truncate(size_mib << 20)
    _run("mkfs.ext4", "-q", "-F", str(path))
    return path


def _build(unpacked: Path, guest: LinuxGuest) -> None:
    depends = _run("apt-cache", "depends", KERNEL_PACKAGE)
    package = next(word for word in depends.split() if word.startswith("linux-image-") and word != KERNEL_PACKAGE)
    _run("apt-get", "download", "-q", package, "busybox-static", folder=unpacked)
    for archive in unpacked.glob("*.deb"):
        _run("dpkg-deb", "-x", str(archive), str(unpacked))
    (kernel,) = unpacked.glob("boot/vmlinuz-*")
    (modules,) = unpacked.glob("lib/modules/*")
    draft = unpacked / "initrd"
    draft.write_bytes(gzip.compress(b"".join(_archive(unpacked, modules)), mtime=0))
    draft.replace(guest.initrd)
    kernel.replace(guest.kernel)


def _archive(unpacked: Path, modules: Path) -> Iterator[bytes]:
    """A cpio archive in the "newc" format, as the kernel wants it."""
    busybox = (unpacked / "bin/busybox").read_bytes()
    for folder in ("bin", "sbin", "etc", "lib", "dev"):
        yield _entry(folder, 0o040755, b"")
    yield _entry("bin/busybox", 0o100755, busybox)
    for applet in _run(str(unpacked / "bin/busybox"), "--list").split():
        if applet != "busybox":
            yield _entry(f"bin/{applet}", 0o120777, b"busybox")
    yield _entry("init", 0o120777, b"bin/init")
    yield _entry("etc/inittab", 0o100644, INITTAB.encode())
    yield _entry("rc", 0o100755, RC.encode())
    yield _entry("leave", 0o100755, LEAVE.encode())
    yield _entry("modules", 0o100644, " ".join(MODULES).encode())
    for name in MODULES:
        (module,) = modules.rglob(f"{name}.ko")
        yield _entry(f"lib/{name}.ko", 0o100644, module.read_bytes())
    yield _entry("TRAILER!!!", 0, b"")


def _entry(name: str, mode: int, content: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _run(*words: str, folder: Path | None = None) -> str:
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=300).stdout


if __name__ == "__main__":  # docs/tutorial-linux.md: the files, into the folder that is named
    target, guest = Path(sys.argv[1]), built()
    shutil.copy(guest.kernel, target / "kernel")
    shutil.copy(guest.initrd, target / "initrd")
    make_rootfs(target / "root.ext4")
