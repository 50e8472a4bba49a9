"""A real Linux, from a spec to a page that the host reads over tap and bridge.

It runs in QEMU's software emulation, in `make nested` under Firecracker.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import guests
from tests.command import PROJECT, Mikrom
from tests.linux_guest import BOOT_ARGS, PROGRAMS, built, entry, make_rootfs, packed
from tests.netns import own_namespace

# the kernel comes from Debian's archive, and each boot takes seconds of CPU time
pytestmark = [pytest.mark.soak, pytest.mark.needs(*PROGRAMS), pytest.mark.timeout(600)]

VM = "web-000"
DRIVER = guests.DRIVER or "qemu"
DATA = "data" if DRIVER == "qemu" else "drive"
"""Firecracker tells its guest no names of drives."""
BOOT_S = 120.0 * guests.SLOWNESS
"""Three seconds where nothing else runs."""

SPECS = """\
apiVersion: mikrom/v1
kind: Project
metadata: {{name: demo}}
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: linux}}
spec:
  kernel: {kernel}
  initrd: {initrd}
  rootfs: {rootfs}
  boot_args: "{boot_args}"
---
apiVersion: mikrom/v1
kind: Network
metadata: {{name: prod}}
spec: {{cidr: 10.77.0.0/24}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: 1
  template:
    image: linux
    drives: {{data: {{size_mib: 4, on_delete: delete}}}}
    network_interfaces: {{eth0: {{network: prod{mtu}}}}}
    mmds: {{role: {role}}}
"""
MTU = 1400 if DRIVER == "qemu" else 1500
"""Firecracker tells its guest from 1.16 on."""
MACHINE = {"machine": {"mem_size_mib": 128}}
SLOW_CPU = [
    {"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [{"register": "ecx", "bitmap": f"0b0{'x' * 20}"}]}
]
"""Without SSE 4.2, which processors have since 2008."""


class Spec:
    """The spec of one VM, and the files that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        guest = built()
        kernel = guest.vmlinux if DRIVER == "firecracker" else guest.kernel  # to unpack it takes half a minute there
        self._boots = {
            name: Path(shutil.copy(path, self.images)) for name, path in (("kernel", kernel), ("initrd", guest.initrd))
        }

    def write(self, *, rootfs_mib: int = 8, role: str = "page", **template: dict[str, Any]) -> None:
        rootfs = self.images / f"root-{rootfs_mib}.ext4"
        if not rootfs.exists():  # each that is made has an identity of its own
            make_rootfs(rootfs, size_mib=rootfs_mib)
        files = {**self._boots, "rootfs": rootfs}
        pinned = {name: pin(path) for name, path in files.items()}
        mtu = "" if MTU == 1500 else f", mtu: {MTU}"
        specs = SPECS.format(boot_args=BOOT_ARGS, role=role, mtu=mtu, **pinned)
        more = "".join(f"    {name}: {json.dumps(value)}\n" for name, value in (MACHINE | template).items())
        (self.folder / "specs/web.yml").write_text(specs + more)

    def add(self, name: str, program: bytes) -> None:
        """One more file in the guest."""
        with self._boots["initrd"].open("ab") as initrd:
            initrd.write(packed(entry(name, 0o100755, program)))


def pin(path: Path) -> str:
    """The file as an Image document names it."""
    return json.dumps({"source": path.as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def compiled(source: str, folder: Path) -> bytes:
    """A program for a guest, which has no libraries."""
    flags = ("-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-I", "mikrom_reconcile/guest")
    subprocess.run(("cc", *flags, "-o", folder / "program", source), cwd=PROJECT, check=True)
    return (folder / "program").read_bytes()


@pytest.fixture
def spec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spec]:
    spec = Spec(folder)
    monkeypatch.setenv("MIKROM_DRIVER", DRIVER)
    monkeypatch.setenv("MIKROM_IMAGE_DIRS", str(spec.images))
    with own_namespace():
        yield spec


def boots_seen(mikrom: Mikrom, boots: int) -> dict[str, int]:
    """What the guest counted on its disks, once it has come up `boots` times; the latest of each."""
    deadline = time.monotonic() + BOOT_S
    while (said := mikrom("logs", VM).stdout).count("MIKROM-LINUX up") < boots:
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
    return {name: int(count) for name, count in re.findall(r"MIKROM-BOOTS (\w+) (\d+)", said)}


def page(mikrom: Mikrom, path: str = "") -> str:
    address = re.findall(r"MIKROM-ADDRESS (\S+)", mikrom("logs", VM).stdout)[-1]
    with urllib.request.urlopen(f"http://{address}/{path}", timeout=BOOT_S) as answer:
        return str(answer.read().decode().strip())


def test_a_linux_guest_serves_a_page_and_keeps_its_data_but_not_its_root_disk(mikrom: Mikrom, spec: Spec) -> None:
    spec.write(rootfs_mib=8)
    try:
        mikrom("apply", "--yes")
        assert boots_seen(mikrom, 1) == {"rootfs": 1, DATA: 1}
        assert page(mikrom) == VM
        assert f"MIKROM-MTU {MTU}" in mikrom("logs", VM).stdout
        metadata = json.loads(page(mikrom, "cgi-bin/metadata"))
        assert (metadata["role"], metadata["mikrom"]["name"]) == ("page", VM)

        mikrom("restart", VM)
        assert boots_seen(mikrom, 2) == {"rootfs": 2, DATA: 2}
        assert mikrom("logs", VM).stdout.count("MIKROM-LINUX bye") == 1, "it was shut down in order"

        spec.write(rootfs_mib=9)
        assert "replace" in mikrom("plan", code=None).stdout
        mikrom("apply", "--yes")
        assert boots_seen(mikrom, 3) == {"rootfs": 1, DATA: 3}
        assert page(mikrom) == VM
    finally:
        mikrom("destroy", "--yes", code=None)
    assert mikrom("get", "vms", "-o", "json").stdout.count(VM) == 0


def applied(mikrom: Mikrom) -> None:
    """Again where a guest in software emulation, on a busy machine, was not done or not heard of in time."""
    for _ in range(5):
        if mikrom("apply", "--yes", code=None).returncode == 0:
            return
    mikrom("apply", "--yes")


def test_a_linux_guest_hears_of_new_metadata_while_it_serves_its_page(mikrom: Mikrom, spec: Spec) -> None:
    try:
        for role in ("page", "api"):
            spec.write(role=role)
            applied(mikrom)
            assert boots_seen(mikrom, 1) == {"rootfs": 1, DATA: 1}, "it was booted once"
            assert page(mikrom) == VM
            metadata = json.loads(page(mikrom, "cgi-bin/metadata"))
            assert (metadata["role"], metadata["mikrom"]["name"]) == (role, VM)
    finally:
        mikrom("destroy", "--yes", code=None)
    assert mikrom("get", "vms", "-o", "json").stdout.count(VM) == 0


def in_guest(command: str) -> str:
    """What a shell of the guest says, which is asked over its vsock (tests/vsock_shell.c)."""
    with socket.socket(socket.AF_UNIX) as shell:
        shell.settimeout(BOOT_S)
        shell.connect(f"{os.environ['MIKROM_RUN_DIR']}/{VM}/v.sock")
        shell.sendall(b"CONNECT 1024\n")
        with shell.makefile("rb") as said:
            assert said.readline().startswith(b"OK ")
            shell.sendall(f"{command}; exit\n".encode())
            return said.read().decode()


def wait_for_free_mib(holds: Callable[[int], bool]) -> int:
    """How much memory the guest has free, once that holds of it."""
    deadline = time.monotonic() + BOOT_S
    while not holds(free := int(re.findall(r"MemFree: +(\d+) kB", in_guest("cat /proc/meminfo"))[0]) >> 10):
        assert time.monotonic() < deadline, free
        time.sleep(0.2)
    return free


@pytest.mark.needs("cc")
@pytest.mark.skipif(
    DRIVER != "firecracker", reason="devices of Firecracker: `make nested` has guests with their drivers"
)
def test_a_guest_with_drivers_gives_memory_back_talks_over_vsock_and_has_huge_pages_and_another_cpu(
    mikrom: Mikrom, spec: Spec, tmp_path: Path
) -> None:
    spec.add("bin/vsock-shell", compiled("tests/vsock_shell.c", tmp_path))
    set_aside = Path("/proc/sys/vm/nr_hugepages")
    try:
        spec.write(vsock={}, balloon={})
        applied(mikrom)
        boots_seen(mikrom, 1)
        before = wait_for_free_mib(lambda _: True)
        for amount_mib, is_so in ((24, lambda free: free < before - 20), (0, lambda free: free > before - 4)):
            spec.write(vsock={}, balloon={"amount_mib": amount_mib})
            applied(mikrom)
            wait_for_free_mib(is_so)
        assert boots_seen(mikrom, 1) == {"rootfs": 1, DATA: 1}, "it gave them back, and got them, while it ran"
        assert "sse4_2" in in_guest("cat /proc/cpuinfo")

        set_aside.write_text("64")
        machine = {"mem_size_mib": 128, "huge_pages": "2M"}
        spec.write(vsock={}, machine=machine, cpu_config={"cpuid_modifiers": SLOW_CPU})
        applied(mikrom)
        boots_seen(mikrom, 2)
        assert "sse4_2" not in in_guest("cat /proc/cpuinfo")
        assert int(re.findall(r"HugePages_Free: +(\d+)", Path("/proc/meminfo").read_text())[0]) < 64
    finally:
        mikrom("destroy", "--yes", code=None)
        set_aside.write_text("0")
