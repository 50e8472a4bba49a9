"""A host with KVM and cgroups v2 on any machine: QEMU emulates an AMD processor with its virtualization.

    python -m tests.nested_host COMMAND [WORD...]

runs COMMAND on it, as root, in this folder, and ends as the command does. The emulated host

- has Debian's cloud kernel (`linux_guest`) with `kvm-amd`, so that `/dev/kvm` is of the ordinary kind, and cgroups v2;
- sees the files of this machine (virtiofs), and keeps to itself what it writes (an overlay in its memory);
- has a Linux in the place of the demo guest (`linux_hello`): Firecracker boots it for `image: hello`.

Nothing is left when it ends, or is killed: the virtual machine and the server of files end with this process. There is
one emulated host at a time, since one alone takes all processors; who comes second waits.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from tests import linux_guest, linux_hello
from tests.conftest import found_firecracker
from tests.linux_guest import entry, packed

PROJECT = Path(__file__).parents[1]
HELLO = PROJECT / "mikrom_reconcile/guest/hello.elf"
PROGRAMS = (*linux_guest.PROGRAMS, "setpriv")
"""What has to be installed for it, besides virtiofsd, which is in no PATH."""
VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
ENDED_ODDLY = 125
"""The exit code when the command has none: the emulated host ended before it, or was too slow."""

INIT = r"""#!/bin/sh
mkdir -p /proc /sys /dev /host /own /new
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
stty -onlcr
for module in $(cat /modules); do insmod "/lib/$module.ko" || echo "no module $module"; done
. /settings
mount -t virtiofs -o ro host /host
mount -t tmpfs -o size=75% own /own
mkdir -p /own/new /own/work
mount -t overlay -o lowerdir=/host,upperdir=/own/new,workdir=/own/work overlay /new
for folder in proc sys dev; do mount --move "/$folder" "/new/$folder"; done
mount -t tmpfs run /new/run
mkdir -p /new/dev/pts /new/dev/shm /new/dev/net
mount -t devpts devpts /new/dev/pts
mount -t tmpfs -o size=75% shm /new/dev/shm
mount -t cgroup2 none /new/sys/fs/cgroup
[ -e /new/dev/net/tun ] || mknod /new/dev/net/tun c 10 200
ln -sf /proc/self/fd /new/dev/fd
mount --bind "/host$hello" "/new$placed_hello"
hostname nested
ip link set lo up
date -s "@$now" >/dev/null
cp /command /new/run/command
read -r up _ </new/proc/uptime
echo "nested: the emulated host is up after $up s"
chroot /new /bin/sh /run/command
echo $? >/new/dev/ttyS1
sync
poweroff -f
"""


def why_not() -> str:
    """What this machine lacks for it, and what to do; "" where it has all."""
    if os.geteuid() != 0:
        return "an emulated host takes root: it shares the files of this machine"
    if found_firecracker() is None:
        return "no firecracker in MIKROM_FIRECRACKER, PATH or /var/lib/mikrom/bin (`make test` fetches it)"
    if platform.machine() != "x86_64":
        return "an emulated host has the programs of this machine, and they are for another processor"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    missing += [] if _virtiofsd() else ["virtiofsd"]
    if not missing:
        return ""
    return (
        f"not installed here: {', '.join(missing)} (on Debian: apt-get install qemu-system-x86, from Debian 13 on "
        "virtiofsd as well)"
    )


def run(
    command: Sequence[str], *, mem_mib: int = 4096, cpus: int = 2, limit_s: float = 3600.0, nice: int = 5,
    environment: Mapping[str, str] | None = None, disk: Path | None = None,
) -> int:  # fmt: skip
    """Run it on an emulated host, whose console goes to standard output; its exit code. `disk` is its /dev/vda."""
    began = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(_workplace())
        began = _told("waited for another emulated host", began)
        linux, hello = linux_guest.built(), linux_hello.built()
        (folder / "initrd").write_bytes(linux.host.read_bytes() + _own_files(hello, command, environment or {}))
        began = _told("kernel and initramfs are there", began)
        stack.enter_context(_ended(_file_server(folder)))
        machine = stack.enter_context(_ended(_machine(folder, linux.kernel, mem_mib, cpus, nice, disk)))
        try:
            machine.wait(limit_s)
        except subprocess.TimeoutExpired:
            _say(f"nested: ended after {limit_s:.0f} s: that is its limit")
        _told("the emulated host ran", began)
        code = (folder / "code").read_text().strip() if (folder / "code").exists() else ""
        if not code:
            _say((folder / "qemu.log").read_text() + (folder / "virtiofsd.log").read_text())
    return int(code) if code else ENDED_ODDLY


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder for this run alone, which the next one empties if this one is killed."""
    folder = linux_guest.cache_folder() / "nested"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = [
            folder / name for name in ("initrd", "code", "files.sock", "files.sock.pid", "virtiofsd.log", "qemu.log")
        ]
        try:
            for file in files:
                file.unlink(missing_ok=True)
            yield folder
        finally:
            for file in files:
                file.unlink(missing_ok=True)


def _own_files(hello: Path, command: Sequence[str], environment: Mapping[str, str]) -> bytes:
    settings = {"hello": hello, "placed_hello": HELLO, "now": int(time.time())}
    known = {
        "HOME": "/root",
        "PATH": f"{PROJECT}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "MIKROM_TESTED_GUEST": "linux",
        "MIKROM_TESTED_DRIVER": "firecracker",
        **{name: os.environ[name] for name in ("MIKROM_FIRECRACKER", "XDG_CACHE_HOME") if name in os.environ},
        **environment,
    }
    words = ["exec", "env", "-i", *(f"{name}={value}" for name, value in known.items()), *command]
    return packed(
        entry("init", 0o100755, INIT.encode()),
        entry(
            "settings", 0o100644, "".join(f"{key}={shlex.quote(str(to))}\n" for key, to in settings.items()).encode()
        ),
        entry("command", 0o100644, f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(words)}\n".encode()),
    )


def _file_server(folder: Path) -> subprocess.Popen[bytes]:
    """A virtiofsd, once it listens. It ends with the connection of its virtual machine."""
    program, socket, log = _virtiofsd(), folder / "files.sock", folder / "virtiofsd.log"
    assert program is not None
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    is_of_rust = "--shared-dir" in told.stdout + told.stderr
    words = ("--shared-dir=/", "--cache=always", "--sandbox=chroot")
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *_ending_with_us(),
                *(program, f"--socket-path={socket}"),
                *(words if is_of_rust else ("-o", "source=/,cache=always,sandbox=chroot")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    while not socket.exists():
        if server.poll() is not None:
            raise SystemExit(f"virtiofsd ended with {server.returncode}: {log.read_text().strip()}")
        time.sleep(0.02)
    return server


def _machine(
    folder: Path, kernel: Path, mem_mib: int, cpus: int, nice: int, disk: Path | None
) -> subprocess.Popen[bytes]:
    words = _qemu(folder, kernel, mem_mib, cpus, nice)
    if disk is not None:  # what the host's kernel has written is this machine's, and stays when QEMU is killed
        words += ["-drive", f"file={disk},if=virtio,format=raw,cache=writeback"]
    with (folder / "qemu.log").open("wb") as log:  # it warns of each feature of that processor that it does not emulate
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log)


def _qemu(folder: Path, kernel: Path, mem_mib: int, cpus: int, nice: int) -> list[str]:
    return [
        *("nice", "-n", str(nice), *_ending_with_us(), "qemu-system-x86_64"),
        *("-accel", "tcg", "-cpu", "EPYC", "-smp", str(cpus), "-m", str(mem_mib), "-no-reboot", "-nic", "none"),
        *("-machine", "q35,memory-backend=mem", "-display", "none", "-monitor", "none"),
        *("-object", f"memory-backend-memfd,id=mem,size={mem_mib}M,share=on"),
        *("-kernel", str(kernel), "-initrd", f"{folder}/initrd"),
        *("-append", "console=ttyS0 panic=-1 no_timer_check loglevel=1 mitigations=off"),
        *("-serial", "stdio", "-serial", f"file:{folder}/code"),
        *("-chardev", f"socket,id=files,path={folder}/files.sock"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=host"),
    ]


def _ending_with_us() -> tuple[str, ...]:
    return ("setpriv", "--pdeathsig", "KILL")


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _virtiofsd() -> str | None:
    return shutil.which("virtiofsd") or next((path for path in VIRTIOFSD if os.access(path, os.X_OK)), None)


def _told(what: str, began: float) -> float:
    now = time.monotonic()
    _say(f"nested: {what}: {now - began:.1f} s")
    return now


def _say(line: str) -> None:
    """Beside what QEMU writes to the same descriptor."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(command: Sequence[str]) -> NoReturn:
    if reason := why_not():
        raise SystemExit(reason)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(run(command))


if __name__ == "__main__":
    main(sys.argv[1:])
