"""The init of container images, as PID 1 of a real Linux in QEMU's software emulation.

The last one runs under Firecracker in `make nested`.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Boot, PinnedFile, RootDisk, VMSpec
from mikrom_reconcile.core.specs.images import init_words
from mikrom_reconcile.host.oci import rootdisk
from mikrom_reconcile.host.oci.rootdisk import format_empty
from mikrom_reconcile.host.oci.sources import image_of
from tests import container_images, guests, linux_guest
from tests.command import Mikrom, document
from tests.container_guest import busybox, guest_for_root_disks
from tests.container_images import Workshop, put
from tests.netns import own_namespace
from tests.registries import docker_registry

# the kernel comes from Debian's archive, and each boot takes seconds of CPU time
pytestmark = [
    pytest.mark.soak,
    pytest.mark.needs(*linux_guest.PROGRAMS, *container_images.PROGRAMS),
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="not root, which unpacking a container image takes"),
]

BOOT_S = 120.0 * guests.SLOWNESS
DRIVER = guests.DRIVER or "qemu"

APP = r"""#!/bin/sh
echo "APP args=$* dir=$(pwd) user=$(id -u):$(id -g):$(id -G | tr ' ' ,) pid1=$(cat /proc/1/comm)"
echo "APP greeting=$GREETING home=$HOME path=$PATH"
echo "APP host=$(hostname) hosts=$(tail -n 1 /etc/hosts | tr '\t' ' ') dns=$(tail -n 1 /etc/resolv.conf)"
echo "APP mounts=$(cut -d ' ' -f 2 /proc/mounts | sort | tr '\n' ,)"
echo "APP address=$(ip -4 -o addr show dev eth0 2>&1 | grep -o 'inet [0-9./]*')"
echo "APP stdout" >/dev/stdout
sh -c 'sleep 0.1 &' # an orphan that ends
trap 'echo APP stopped by USR1; exit 7' USR1
sleep 1
echo "APP zombies=$(ps -o stat | grep -c ^Z)"
[ "$1" = leave ] && exit 3
echo APP waits
while :; do sleep 0.1; done
"""


APPLETS = "sh id cat tail cut sort tr sleep ps grep hostname ip pwd df stat wc sync reboot"


def image(folder: Path, *words: str, **programs: str) -> Path:
    workshop = Workshop(folder / "workshop")
    workshop.folder.mkdir()
    workshop.begin()
    root = workshop.rootfs
    put(root / "bin/busybox", busybox(), 0o755)
    for applet in APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    put(root / "usr/local/bin/app", APP, 0o755)
    for name, program in programs.items():
        put(root / name, program, 0o755)
    (root / "data").mkdir(mode=0o750)
    os.chown(root / "data", 1000, 1001)
    put(root / "etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\n")
    put(root / "etc/group", "root:x:0:\napp:x:1001:\nmore:x:44:app,root\n")
    workshop.commit()
    workshop.configure(
        *("--config.entrypoint", "app", "--config.workingdir", "/made/here", "--config.user", "app"),
        *("--config.env", "GREETING=a b=c", "--config.stopsignal", "SIGUSR1"),
        *(part for word in words for part in ("--config.cmd", word)),
    )
    disk = folder / "disk"
    found = image_of(
        PinnedFile(source=f"oci-layout:file://{workshop.layout}", sha256=workshop.digest()),
        lambda file, _: Path(file.source.removeprefix("file://")),
        container_images.no_registry,
        max_bytes=1 << 30,
    )
    rootdisk.build(found, disk, max_bytes=1 << 30, give_up_at=time.monotonic() + 60)
    return disk


def disk(path: Path) -> tuple[str, ...]:
    return ("-drive", f"if=none,id={path.name},format=raw,file={path}", "-device", f"virtio-blk-pci,drive={path.name}")


class Guest:
    def __init__(self, folder: Path, boot_args: str, network: str) -> None:
        guest = guest_for_root_disks(folder)
        self._console = folder / "console"
        self._qmp = folder / "qmp"
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "128", "-no-reboot"),
                *("-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{self._console}"),
                *("-qmp", f"unix:{self._qmp},server=on,wait=off"),
                *("-kernel", str(guest.kernel), "-initrd", str(guest.initrd)),
                *("-append", f"{linux_guest.BOOT_ARGS} {boot_args}"),
                *disk(folder / "disk"),
                *(word for drive in sorted(folder.glob("drive-*")) for word in disk(drive)),
                *("-netdev", f"user,id=n,{network}", "-device", "virtio-net-pci,netdev=n"),
            ]
        )

    def said(self) -> str:
        return self._console.read_text(errors="replace").replace("\r", "") if self._console.exists() else ""

    def wait_for(self, text: str) -> str:
        deadline = time.monotonic() + BOOT_S
        while text not in (said := self.said()):
            assert time.monotonic() < deadline, said
            assert self.process.poll() is None, said
            time.sleep(0.1)
        return said

    def press_ctrl_alt_del(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._qmp))
            keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]
            for order in ({"execute": "qmp_capabilities"}, {"execute": "send-key", "arguments": {"keys": keys}}):
                connection.sendall(json.dumps(order).encode())
                time.sleep(0.2)
                connection.recv(65536)


@contextmanager
def booted(folder: Path, boot_args: str = "", network: str = "restrict=on") -> Iterator[Guest]:
    guest = Guest(folder, boot_args, network)
    try:
        yield guest
    finally:
        guest.process.kill()
        guest.process.wait()


def test_an_image_runs_as_it_says_and_its_exit_status_is_told(tmp_path: Path) -> None:
    image(tmp_path, "leave", "two words")
    network = "ip=10.0.2.15::10.0.2.2:255.255.255.0:web-000:eth0:off nameserver=10.0.2.3"
    with booted(tmp_path, network) as guest:
        guest.process.wait(BOOT_S)
        said = guest.said()
    assert "MIKROM-INIT runs app\n" in said
    assert "APP args=leave two words dir=/made/here user=1000:1001:1001,44 pid1=init\n" in said
    assert "APP greeting=a b=c home=/srv/app path=/usr/local/sbin:/usr/local/bin:" in said
    assert "APP host=web-000 hosts=10.0.2.15 web-000 dns=nameserver 10.0.2.3\n" in said
    assert "APP address=inet 10.0.2.15/24\n" in said
    assert {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm"} <= set(re.findall(r"mounts=(.*)", said)[0].split(","))
    assert "APP stdout\n" in said
    assert "APP zombies=0\n" in said
    assert "MIKROM-INIT exit status 3\n" in said


def test_ctrl_alt_del_is_the_images_stop_signal(tmp_path: Path) -> None:
    image(tmp_path, "stay")
    with booted(tmp_path) as guest:
        guest.wait_for("APP waits\n")
        guest.press_ctrl_alt_del()
        guest.process.wait(BOOT_S)
        said = guest.said()
    assert "APP stopped by USR1\n" in said
    assert "MIKROM-INIT exit status 7\n" in said
    assert subprocess.run(["e2fsck", "-fn", str(tmp_path / "disk")], capture_output=True, check=False).returncode in {
        0,
        4,
    }


def told(**fields: Any) -> str:
    """The words for the init of a VM with these fields, as its host makes them."""
    rootfs = RootDisk(source="oci:x", sha256="0" * 64, init=fields.pop("init", "mikrom"))
    boot = Boot(kernel=PinnedFile(source="file:///k", sha256="0" * 64), rootfs=rootfs)
    spec = msgspec.convert({"image": "x", **fields}, VMSpec)
    return " ".join(init_words(replace(spec, boot=boot)))


def drive(folder: Path, name: str, size_mib: int) -> Path:
    path = folder / f"drive-{name}"
    with path.open("ab") as out:
        out.truncate(size_mib << 20)
    return path


LOOK = """
echo APP greeting=$GREETING more=$MORE
echo APP root=$(df -m / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2)
for folder in /data /srv/logs; do
  echo APP $folder=$(df -m $folder | tail -n 1 | tr -s ' ' | cut -d ' ' -f 1,2) $(stat -c %u:%g:%a $folder)
done
echo started >>/data/starts || exit 9
echo APP starts=$(wc -l </data/starts)
exit 4
"""


def test_a_vm_has_a_command_variables_and_drives_of_its_own_and_its_disks_grow(tmp_path: Path) -> None:
    image(tmp_path)
    for name in ("data", "logs"):
        format_empty(drive(tmp_path, name, 16), give_up_at=time.monotonic() + 60)
    words = told(
        command=["sh", "-c", LOOK],
        env={"GREETING": 'it\'s 100 % "ü"', "MORE": 1},
        drives={"data": {"size_mib": 16, "mount": "/data"}, "logs": {"size_mib": 16, "mount": "/srv/logs"}},
    )
    for boot, size_mib in enumerate((16, 300), 1):
        os.truncate(drive(tmp_path, "data", size_mib), size_mib << 20)
        os.truncate(tmp_path / "disk", (500 * boot) << 20)
        (tmp_path / "console").unlink(missing_ok=True)
        with booted(tmp_path, words) as guest:
            guest.process.wait(BOOT_S)
            said = guest.said()
        assert 'APP greeting=it\'s 100 % "ü" more=1\n' in said
        assert int(re.findall("root=([0-9]+)", said)[0]) > 450 * boot
        device, size = re.findall("APP /data=(.*) (.*) 1000:1001:750\n", said)[0]
        assert (device, int(size) > size_mib * 0.7) == ("/dev/vdb", True)
        assert re.search("APP /srv/logs=/dev/vdc [0-9]+ 1000:1001:755\n", said), "what the image lacks is its user's"
        assert f"APP starts={boot}\n" in said
        assert "MIKROM-INIT exit status 4\n" in said
    for path in (tmp_path / "disk", tmp_path / "drive-data"):
        assert subprocess.run(["e2fsck", "-fn", str(path)], capture_output=True, check=False).returncode == 0


def test_a_drive_that_cannot_be_mounted_is_a_failure_and_nothing_runs_without_it(tmp_path: Path) -> None:
    image(tmp_path)
    drive(tmp_path, "data", 16)
    with booted(tmp_path, told(drives={"data": {"size_mib": 16, "mount": "/data"}})) as guest:
        guest.process.wait(BOOT_S)
        said = guest.said()
    assert "MIKROM-INIT cannot mount /data\n" in said
    assert "MIKROM-INIT exit status 1\n" in said
    assert "APP" not in said


OWN_INIT = """#!/bin/sh
echo "OWN pid=$$ home=$HOME mounts=$(cut -d ' ' -f 2 /proc/mounts | sort | tr '\\n' ,)"
reboot -f
"""


def test_an_image_may_have_an_init_of_its_own(tmp_path: Path) -> None:
    image(tmp_path, **{"sbin/init": OWN_INIT})
    format_empty(drive(tmp_path, "data", 16), give_up_at=time.monotonic() + 60)
    with booted(tmp_path, told(init="image", drives={"data": {"size_mib": 16, "mount": "/data"}})) as guest:
        guest.process.wait(BOOT_S)
        said = guest.said()
    assert "OWN pid=1 home=/ mounts=/,/data,/dev,/proc,/sys,\n" in said
    assert "MIKROM-INIT" not in said


class MetadataService(http.server.BaseHTTPRequestHandler):
    """What Firecracker's answers, version 2; `secrets` are in it."""

    protocol_version = "HTTP/1.1"
    secrets: ClassVar = {"PASSWORD": "correct horse; battery = staple", "KEY": "k" * 30_000}

    def do_PUT(self) -> None:
        assert self.headers["X-metadata-token-ttl-seconds"]
        self._send(200, "a token" if self.path == "/latest/api/token" else "")

    def do_GET(self) -> None:
        assert self.headers["X-metadata-token"] == "a token"
        value = self.secrets.get(self.path.removeprefix("/mikrom/env/"))
        self._send(404 if value is None else 200, value or "")

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata_service() -> Iterator[str]:
    """What makes a QEMU's network have one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), MetadataService)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield (
        "restrict=on,net=169.254.0.0/16,host=169.254.0.2,"
        f"guestfwd=tcp:169.254.169.254:80-tcp:127.0.0.1:{server.server_port}"
    )
    server.shutdown()
    thread.join()
    server.server_close()


ADDRESS = "ip=169.254.0.15::169.254.0.2:255.255.0.0:web-000:eth0:off"


def test_a_secret_of_the_metadata_service_is_a_variable_and_stands_nowhere_else(
    tmp_path: Path, metadata_service: str
) -> None:
    image(tmp_path)
    script = 'echo "APP password=$PASSWORD key=${#KEY}"; cat /proc/cmdline; sync'
    env = {name: {"secret_ref": "env://X"} for name in MetadataService.secrets}
    words = told(command=["sh", "-c", script], env=env)
    with booted(tmp_path, f"{ADDRESS} {words}", metadata_service) as guest:
        guest.process.wait(BOOT_S)
        said = guest.said()
    assert "APP password=correct horse; battery = staple key=30000\n" in said
    assert said.count("battery") == 1
    assert b"battery" not in (tmp_path / "disk").read_bytes()


def test_a_secret_that_is_not_there_is_a_failure_and_nothing_runs_without_it(
    tmp_path: Path, metadata_service: str
) -> None:
    image(tmp_path)
    with booted(tmp_path, f"{ADDRESS} {told(env={'OTHER': {'secret_ref': 'env://X'}})}", metadata_service) as guest:
        guest.process.wait(BOOT_S)
        said = guest.said()
    assert "MIKROM-INIT cannot read the secret OTHER\n" in said
    assert "MIKROM-INIT exit status 1\n" in said
    assert "APP" not in said


SPECS = """\
apiVersion: mikrom/v1
kind: Project
metadata: {{name: demo}}
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: page}}
spec:
  kernel: {kernel}
  initrd: {initrd}
  rootfs: {{oci: "{repository}:1", size_mib: 100}}
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
  instances:
    web-000:
      network_interfaces: {{eth0: {{network: prod}}}}
      checks: {{page: {{type: http, port: 80, interval: 1s}}}}
    ended: {{command: [sh, -c, exit 0]}}
    failed: {{command: [sh, -c, "exit $CODE"], env: {{CODE: 3}}}}
  template:
    image: page
    machine: {{mem_size_mib: 128}}
    drives: {{data: {{size_mib: 16, mount: /data, on_delete: delete}}}}
    restart: {{policy: on-failure}}
"""

PAGE = r"""#!/bin/sh
hostname >/www/index.html
date +%s >>/data/starts
cp /data/starts /www/starts
trap 'echo PAGE bye; exit 0' TERM
httpd -p 80 -h /www
echo PAGE up
while :; do sleep 0.2; done
"""


def page_image(folder: Path) -> Workshop:
    workshop = Workshop(folder)
    workshop.folder.mkdir()
    workshop.begin()
    put(workshop.rootfs / "bin/busybox", busybox(), 0o755)
    for applet in ("sh", "date", "sleep", "hostname", "httpd", "cp"):
        (workshop.rootfs / "bin" / applet).symlink_to("busybox")
    put(workshop.rootfs / "serve", PAGE, 0o755)
    (workshop.rootfs / "www").mkdir()
    workshop.commit()
    workshop.configure("--config.entrypoint", "/serve")
    return workshop


def pinned(path: Path) -> str:
    return json.dumps({"source": path.as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def fetched(address: str) -> list[str]:
    with urllib.request.urlopen(f"http://{address}/starts", timeout=BOOT_S) as starts:
        count = len(starts.read().split())
    with urllib.request.urlopen(f"http://{address}/", timeout=BOOT_S) as answer:
        return [answer.read().decode().strip(), str(count)]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOOT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def phases_of(mikrom: Mikrom) -> dict[str, str]:
    return {vm["name"]: vm["phase"] for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]}


@pytest.mark.needs("docker-registry")
def test_an_image_of_a_registry_becomes_a_vm_that_serves_a_page(
    mikrom: Mikrom, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = folder / "images"
    images.mkdir()
    guest = guest_for_root_disks(images)
    workshop = page_image(tmp_path / "workshop")
    kernel = Path(shutil.copy(guest.kernel, images))
    monkeypatch.setenv("MIKROM_DRIVER", DRIVER)
    monkeypatch.setenv("MIKROM_IMAGE_DIRS", str(images))
    with own_namespace(), docker_registry(tmp_path) as address:
        repository = f"{address}/team/page"
        container_images.run(
            "skopeo", "copy", "--dest-tls-verify=false", f"oci:{workshop.layout}:it", f"docker://{repository}:1"
        )
        (folder / "specs/web.yml").write_text(
            SPECS.format(
                kernel=pinned(kernel),
                initrd=pinned(guest.initrd),
                repository=repository,
                boot_args=linux_guest.BOOT_ARGS,
            )
        )
        mikrom("image", "pin", "page")
        try:
            mikrom("apply", "--yes", code=None)  # which may see one that failed already
            assert fetched("10.77.0.2") == ["web-000", "1"]
            ends = {"web-000": "running", "ended": "exited", "failed": "crashed"}
            wait_until(lambda: phases_of(mikrom) == ends)
            assert "page rootfs" in mikrom("images").stdout
            mikrom("restart", "web-000")
            said = mikrom("logs", "web-000").stdout
            assert "PAGE bye\n" in said
            assert "MIKROM-INIT exit status 0\n" in said
            wait_until(lambda: mikrom("logs", "web-000", code=None).stdout.count("PAGE up") == 2)
            assert fetched("10.77.0.2") == ["web-000", "2"], "the drive outlives a restart"
            planned = mikrom("plan").stdout
            assert "start    failed on localhost: it is crashed" in planned
            assert "Plan: 1 to start; 2 unchanged." in planned, "what ended well stays down"
        finally:
            mikrom("destroy", "--yes", code=None)
