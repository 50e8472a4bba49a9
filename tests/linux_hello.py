"""The demo guest as a real Linux: one ELF file of kernel and initramfs, which says and does what `hello.elf` does.

Where it is put in the place of `mikrom_reconcile/guest/hello.elf`, as `nested_host` does, every VM of the image `hello`
is a Linux: see `tests/guests.py` for what that asks of tests. The table of what it obeys is in the guest's README.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from tests import linux_guest
from tests.linux_guest import entry, packed

INIT = r"""#!/bin/sh
# Nothing is said but what the demo guest says: without console=, the kernel is silent here.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
echo 0 >/proc/sys/kernel/ctrl-alt-del # this process gets a SIGINT
mode= beat=
for word in $(cat /proc/cmdline); do
    case $word in mikrom.mode=*) mode=${word#*=} ;; mikrom.heartbeat=1) beat=1 ;; esac
done
amount=${mode#*:}
leave() { # LINE HOW
    echo "$1"
    echo "$2" >/sys/kernel/reboot/type
    reboot -f
}
rest() { # SECONDS: a signal is heard at once
    sleep "$1" &
    wait $!
}
case $mode in
ignore | spin | flood) trap '' INT ;;
*) trap 'leave "MIKROM-CAD bye" kbd' INT ;;
esac
until grep -q kbd /proc/bus/input/devices; do usleep 10000; done # its driver begins beside this
printf 'MIKROM-UP ' && cat /proc/cmdline
case $mode in
spin) while :; do :; done ;;
flood) while :; do printf 'MIKROM-FLOOD \033[31m\200\377 ' && cat /proc/cmdline; done ;;
esac
case $mode in
exit:*)
    usleep $((amount * 1000))
    leave 'MIKROM-EXIT bye' kbd
    ;;
crash:*)
    usleep $((amount * 1000))
    leave MIKROM-CRASH triple
    ;;
touch:*)
    mount -t tmpfs -o size=100% tmpfs /srv
    dd if=/dev/zero of=/srv/touched bs=1M count="$amount" 2>/dev/null
    echo "MIKROM-TOUCHED $amount"
    ;;
esac
beats=0
while :; do
    rest 1
    beats=$((beats + 1))
    [ -z "$beat" ] || echo "MIKROM-BEAT $beats"
done
"""

INITRD_AT = 64 << 20
"""Behind the kernel, in the guest's memory."""

_PT_LOAD, _PT_NULL, _PT_NOTE = 1, 0, 4
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


def built(folder: Path | None = None) -> Path:
    """The file, made if it is not in the cache yet."""
    linux = linux_guest.built(folder)
    recipe = hashlib.sha256(Path(__file__).read_bytes() + bytes(linux.initrd)).hexdigest()[:12]
    path = linux.initrd.with_name(f"hello-{recipe}.elf")
    if not path.exists():
        content = _with_initrd(linux.vmlinux.read_bytes(), linux.initrd.read_bytes() + _init())
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(path)
    return path


def _init() -> bytes:
    folders = (entry(name, 0o040755, b"") for name in ("proc", "sys", "srv"))
    return packed(*folders, entry("init", 0o100755, INIT.encode()))  # the later of two files counts


def _with_initrd(kernel: bytes, initrd: bytes) -> bytes:
    """The kernel with one segment more: a few instructions that tell it where its initramfs is, and that."""
    entry_at, headers_at = struct.unpack_from("<QQ", kernel, 24)
    size, count = struct.unpack_from("<HH", kernel, 54)
    assert size == _PROGRAM_HEADER.size
    headers = [list(_PROGRAM_HEADER.unpack_from(kernel, headers_at + size * index)) for index in range(count)]
    assert max(header[4] + header[6] for header in headers) <= INITRD_AT, "the kernel is too large for this place"
    for header in headers:
        if header[0] == _PT_NOTE:  # names another place to begin at, with other registers
            header[0] = _PT_NULL
    # what is in rsi is the address of the boot parameters (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol")
    code = b"\xc7\x86\x18\x02\x00\x00" + struct.pack("<I", INITRD_AT)  # mov dword [rsi + ramdisk_image], INITRD_AT
    code += b"\xc7\x86\x1c\x02\x00\x00" + struct.pack("<I", len(initrd))  # mov dword [rsi + ramdisk_size], its size
    code += b"\xb8" + struct.pack("<I", entry_at) + b"\xff\xe0"  # mov eax, entry_at; jmp rax
    code_at = INITRD_AT + len(initrd)
    segment = initrd + code
    headers.append([_PT_LOAD, 7, len(kernel), 0, INITRD_AT, len(segment), len(segment), 0x1000])
    more = b"".join(_PROGRAM_HEADER.pack(*header) for header in headers)
    head = bytearray(kernel[:64])
    struct.pack_into("<QQ", head, 24, code_at, len(kernel) + len(segment))
    struct.pack_into("<H", head, 56, len(headers))
    return bytes(head) + kernel[64:] + segment + more
