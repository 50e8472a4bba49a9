"""A real Linux guest for tests: Debian's cloud kernel, and an initramfs of busybox that says and serves what it finds.

Both come from Debian packages that are unpacked, not installed; what was built stays in a cache folder. The guest

- counts its boots on the root disk (ext4) and on each drive (in its first bytes): `MIKROM-BOOTS rootfs 1`;
- takes the address of the kernel's `ip=` argument and serves its name over HTTP on port 80, and its metadata: as they
  are when it is asked for `cgi-bin/metadata`;
- runs `/bin/vsock-shell` if an initramfs behind its own has one;
- says `MIKROM-LINUX up`, and ends at Ctrl-Alt-Del, after `MIKROM-LINUX bye`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mikrom_reconcile.host.oci.unpack import kernel_in as unpacked_kernel

KERNEL_PACKAGE = "linux-image-cloud-amd64"
PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb", "mkfs.ext4", "qemu-system-x86_64")
"""What has to be installed for it."""

BOOT_ARGS = "console=ttyS0 reboot=k panic=-1 quiet"
"""reboot=k ends the VM by the keyboard controller, as Firecracker wants it."""

MODULES = ("virtio_pci", "virtio_mmio", "virtio_net", "virtio_blk", "virtio_balloon", "vmw_vsock_virtio_transport")
HOST_MODULES = (
    *(
        "kvm-amd",
        "virtio_pci",
        "virtio_blk",
        "virtiofs",
        "overlay",
        "tun",
        "bridge",
        "veth",
        "vhost_vsock",
        "virtio-rng",
    ),
    *("nft_chain_nat", "nft_masq", "nft_nat", "nft_ct", "nft_limit", "nft_log", "nft_fib_inet", "nft_numgen"),
    *("nft_reject_inet", "nft_reject_bridge", "nft_meta_bridge", "nf_conntrack_bridge", "sch_ingress"),
)
"""What a host has loaded, where nothing loads a module when it is asked for."""

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
mkdir -p /proc /sys /root-disk /www/cgi-bin
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
        echo "$disk" >/metadata-disk
        continue
    fi
    case $name in '' | [0-9]*) name=drive ;; esac # Firecracker's own numbers say nothing
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
    route add -host 169.254.169.254 "${device:-eth0}"
    hostname >/www/index.html
    ln -s /metadata /www/cgi-bin/metadata
    httpd -p 80 -h /www
    echo "MIKROM-ADDRESS $client"
    echo "MIKROM-MTU $(cat "/sys/class/net/${device:-eth0}/mtu")"
fi
[ ! -x /bin/vsock-shell ] || vsock-shell &
echo MIKROM-LINUX up
"""

METADATA = r"""#!/bin/sh
printf 'Content-Type: application/json\r\n\r\n'
if [ -e /metadata-disk ]; then # QEMU's
    exec head -n 1 "$(cat /metadata-disk)"
fi
ask() { # LINE HEADER: the last line of what Firecracker answers
    printf '%s HTTP/1.1\r\n%s\r\nAccept: application/json\r\n\r\n' "$1" "$2" |
        timeout 3 nc 169.254.169.254 80 | sed '1,/^.\{0,1\}$/d'
}
token=$(ask 'PUT /latest/api/token' 'X-metadata-token-ttl-seconds: 60')
ask 'GET /' "X-metadata-token: $token"
"""


@dataclass(frozen=True)
class LinuxGuest:
    """The files that an Image document names. `vmlinux` is the kernel as Firecracker boots it.

    `host` is an initramfs without an init, for a machine that is to be a host of VMs.
    """

    kernel: Path
    initrd: Path
    vmlinux: Path
    host: Path


def built(folder: Path | None = None) -> LinuxGuest:
    """The guest, built if it is not in `folder` (else the user's cache) yet. Takes seconds, and the network once."""
    cache = folder or cache_folder()
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    guest = LinuxGuest(
        kernel=cache / f"linux-{recipe}.bzimage",
        initrd=cache / f"linux-{recipe}.cpio.gz",
        vmlinux=cache / f"linux-{recipe}.vmlinux",
        host=cache / f"linux-{recipe}.host.cpio.gz",
    )
    if not all(path.exists() for path in vars(guest).values()):
        unpacked = cache / f"unpacked.{os.getpid()}"
        unpacked.mkdir(parents=True)
        try:
            _build(unpacked, guest)
        finally:
            shutil.rmtree(unpacked)
    return guest


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mikrom-tests"


def make_rootfs(path: Path, *, size_mib: int = 8) -> Path:
    """An empty ext4 file system, to be the image of root disks."""
    with path.open("wb") as image:
        image.truncate(size_mib << 20)
    _run("mkfs.ext4", "-q", "-F", str(path))
    return path


def _build(unpacked: Path, guest: LinuxGuest) -> None:
    package = _kernel_package()
    if not package:
        _run("apt-get", "update", "-q")
        package = _kernel_package()
    _run("apt-get", "download", "-q", package, "busybox-static", folder=unpacked)
    for archive in unpacked.glob("*.deb"):
        _run("dpkg-deb", "-x", str(archive), str(unpacked))
    (kernel,) = unpacked.glob("boot/vmlinuz-*")
    (modules,) = unpacked.glob("lib/modules/*")
    archives = {
        guest.vmlinux: unpacked_kernel(kernel.read_bytes()),
        guest.initrd: packed(*_programs(unpacked), *_modules(modules, MODULES), *_own_files()),
        guest.host: packed(*_programs(unpacked), *_modules(modules, HOST_MODULES)),
    }
    for path, content in archives.items():
        draft = unpacked / "draft"
        draft.write_bytes(content)
        draft.replace(path)
    kernel.replace(guest.kernel)


def _kernel_package() -> str:
    """The newest kernel's; "" where apt has no list of packages, as in a new container."""
    depends = subprocess.run(("apt-cache", "depends", KERNEL_PACKAGE), capture_output=True, text=True, check=False)
    found = (word for word in depends.stdout.split() if word.startswith("linux-image-") and word != KERNEL_PACKAGE)
    return next(found, "")


def packed(*entries: bytes) -> bytes:
    """A cpio archive in the "newc" format, as the kernel wants it. Of several behind each other all count."""
    return gzip.compress(b"".join((*entries, entry("TRAILER!!!", 0, b""))), mtime=0)


def _programs(unpacked: Path) -> Iterator[bytes]:
    for folder in ("bin", "sbin", "etc", "lib", "dev"):
        yield entry(folder, 0o040755, b"")
    yield entry("bin/busybox", 0o100755, (unpacked / "bin/busybox").read_bytes())
    for applet in _run(str(unpacked / "bin/busybox"), "--list").split():
        if applet != "busybox":
            yield entry(f"bin/{applet}", 0o120777, b"busybox")


def _own_files() -> Iterator[bytes]:
    yield entry("init", 0o120777, b"bin/init")
    yield entry("etc/inittab", 0o100644, INITTAB.encode())
    for name, script in (("rc", RC), ("leave", LEAVE), ("metadata", METADATA)):
        yield entry(name, 0o100755, script.encode())


def _modules(folder: Path, wanted: Iterable[str]) -> Iterator[bytes]:
    """The modules, and a list of them in the order in which they need each other; what is not there is built in."""
    files = {path.stem.replace("-", "_"): path for path in folder.rglob("*.ko")}
    order: list[str] = []

    def add(name: str) -> None:
        if name in files and name not in order:
            depends = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
            for needed in depends[1].decode().split(",") if depends else ():
                add(needed.replace("-", "_"))
            order.append(name)

    for name in wanted:
        add(name.replace("-", "_"))
    yield entry("modules", 0o100644, " ".join(order).encode())
    for name in order:
        yield entry(f"lib/{name}.ko", 0o100644, files[name].read_bytes())


def entry(name: str, mode: int, content: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _run(*words: str, folder: Path | None = None) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":  # docs/tutorial-linux.md: the files, into the folder that is named
    target, guest = Path(sys.argv[1]), built()
    shutil.copy(guest.kernel, target / "kernel")
    shutil.copy(guest.initrd, target / "initrd")
    make_rootfs(target / "root.ext4")
