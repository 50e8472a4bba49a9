"""The packets of docs/networks.md, sent by two real Linux guests that are booted once.

Their networks change under them, by specs and `mikrom apply`. The frames are those of tests/contract/test_isolation.py:
they go out at a guest's first interface and are looked for at the other guest's (tests/guest_wire.c), at the host, and
outside. Beside them, ordinary programs say whether they are answered. Orders reach the guests by way of a second
interface, on a network of its own. `pytest -rP` shows the table as it was seen.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from mikrom_reconcile.host.ports import VMRecord
from tests import guests
from tests.command import Mikrom
from tests.contract.test_isolation import (
    ALONE,
    ANN,
    BOB,
    DENY,
    GATEWAY,
    OPEN,
    ROWS,
    Row,
    Wire,
    World,
    allow,
    wrong_rows,
)
from tests.e2e.test_linux_guest import BOOT_S, DRIVER, MACHINE, applied, compiled, pin
from tests.linux_guest import BOOT_ARGS, INITTAB, PROGRAMS, built, entry, packed
from tests.netns import own_namespace

pytestmark = [pytest.mark.soak, pytest.mark.needs(*PROGRAMS, "cc", "ip", "nft"), pytest.mark.timeout(2400)]

WIRE_PORT, SHELL_PORT = 7000, 7001
ELSEWHERE, OUT = "203.0.113.9", "203.0.113.1"
PUBLISHED, OF_HOST = "8080", "8081"
ANSWER_S = 10 if guests.LINUX else 5
CALLS = 10
SERVE = f"""::wait:/join
::respawn:/bin/nc -ll -p {WIRE_PORT} -e /bin/wire
::respawn:/bin/nc -ll -p {SHELL_PORT} -e /bin/sh
"""
JOIN = r"""#!/bin/sh
ifconfig eth0 promisc # QEMU's network card would keep VLANs to itself
ifconfig eth1 $(ifconfig eth0 | sed -n 's/.*inet addr:10.0.0.\([0-9]*\) .*/10.1.0.\1/p') netmask 255.255.255.0
"""


def connect(ip: str, port: int) -> socket.socket:
    """To a guest, by way of its second interface, once it is up."""
    deadline = time.monotonic() + BOOT_S
    while True:
        try:
            return socket.create_connection((ip.replace("10.0", "10.1"), port), timeout=BOOT_S)
        except OSError:
            assert time.monotonic() < deadline, f"no guest answers for {ip}"
            time.sleep(0.2)


class GuestWire(Wire):
    """The first interface of a real guest."""

    def __init__(self, name: str, mac: bytes, ip: str, router: str) -> None:
        super().__init__(name, mac, ip, router)
        self.connect()

    def connect(self) -> None:
        self.stream, self.read = connect(self.ip, WIRE_PORT), b""
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream.setblocking(False)  # noqa: FBT003

    def send(self, frame: bytes) -> None:
        self.stream.sendall(struct.pack("<H", len(frame)) + frame)

    def receive(self) -> bytes:
        while len(self.read) < 2 or len(self.read) < (end := 2 + int.from_bytes(self.read[:2], "little")):
            more = self.stream.recv(1 << 16)
            assert more, f"the guest of {self.name} has ended"
            self.read += more
        frame, self.read = self.read[2:end], self.read[end:]
        return frame

    def close(self) -> None:
        self.stream.close()


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing, which would be among what pytest says."""


@contextmanager
def served(ip: str, port: int) -> Iterator[None]:
    """A page in the namespace of this thread."""
    with ThreadingHTTPServer((ip, port), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def outside_of(host: int) -> Iterator[list[socket.socket]]:
    """A machine beyond the host, whose namespace it is, with a page; and its sockets, each for one connection."""
    with ExitStack() as stack:
        with own_namespace():
            peer = ("peer", "name", "out0", "netns", f"/proc/{os.getpid()}/fd/{host}")
            for words in (
                ("link", "add", "out1", "type", "veth", *peer),
                ("address", "add", f"{ELSEWHERE}/24", "dev", "out1"),
                ("link", "set", "out1", "up"),
            ):
                subprocess.run(("ip", *words), check=True)
            stack.enter_context(served(ELSEWHERE, 80))
            callers = [stack.enter_context(socket.socket()) for _ in range(CALLS)]
        for words in (("address", "add", f"{OUT}/24", "dev", "out0"), ("link", "set", "out0", "up")):
            subprocess.run(("ip", *words), check=True)
        stack.enter_context(served("", int(OF_HOST)))
        yield callers


class GuestWorld(World):
    """The same host, where the VMs are real ones, and a network changes by an apply."""

    wire = GuestWire
    callers: list[socket.socket]

    def __init__(self, folder: Path, mikrom: Mikrom, image: dict[str, Any]) -> None:
        self.folder, self.mikrom, self.image = folder, mikrom, image
        super().__init__(folder / "state")

    def change(self, fields: dict[str, Any]) -> None:
        network = {"cidr": "10.0.0.0/24", "nat": True, **msgspec.to_builtins(fields)}
        publish = {"ann": network.pop("publish", {"8053/udp": 53, PUBLISHED: 80})}
        documents = [("Project", "demo", {}), ("Image", "linux", self.image)]
        documents += [("Network", "prod", network), ("Network", "orders", {"cidr": "10.1.0.0/24"})]
        for name, ip in (("ann", ANN), ("bob", BOB)):
            eth0 = {"network": "prod", "ip": ip, "publish": publish.get(name, {})}
            interfaces = {"eth0": eth0, "eth1": {"network": "orders", "ip": ip.replace("10.0", "10.1")}}
            template = {"image": "linux", "network_interfaces": interfaces, **MACHINE}
            documents.append(("Fleet", name, {"replicas": 1, "template": template}))
        specs = [
            {"apiVersion": "mikrom/v1", "kind": kind, "metadata": {"name": name}, **({"spec": spec} if spec else {})}
            for kind, name, spec in documents
        ]
        (self.folder / "specs/web.yml").write_text("\n---\n".join(map(json.dumps, specs)))
        is_first = not self.vms
        applied(self.mikrom)
        for name in ("ann", "bob"):
            record = self.records.read(f"{name}-000")
            assert isinstance(record, VMRecord)
            self.vms[name] = record
        for wire in () if is_first else (self.ann, self.bob):  # what is too slow to answer an apply, the next restarts
            assert isinstance(wire, GuestWire)
            wire.close()
            wire.connect()

    def passes(self, what: str, row: Row | Program) -> bool:
        return row.attempt(self) if isinstance(row, Program) else self.arrives(what, row)


@pytest.fixture
def image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an Image document says of a Linux that passes frames between its first interface and us."""
    images, guest = folder / "images", built()
    images.mkdir()
    more = packed(
        entry("etc/inittab", 0o100644, (INITTAB + SERVE).encode()),
        entry("join", 0o100755, JOIN.encode()),
        entry("bin/wire", 0o100755, compiled("tests/guest_wire.c", folder)),
    )
    kernel = shutil.copy(guest.vmlinux if DRIVER == "firecracker" else guest.kernel, images / "kernel")
    (images / "initrd").write_bytes(guest.initrd.read_bytes() + more)
    monkeypatch.setenv("MIKROM_DRIVER", DRIVER)
    monkeypatch.setenv("MIKROM_IMAGE_DIRS", str(images))
    files = {"kernel": kernel, "initrd": images / "initrd"}
    return {"boot_args": BOOT_ARGS, **{name: json.loads(pin(Path(path))) for name, path in files.items()}}


@pytest.fixture
def world(folder: Path, mikrom: Mikrom, image: dict[str, Any]) -> Iterator[GuestWorld]:
    with own_namespace() as host, outside_of(host) as outside:
        try:
            with closing(GuestWorld(folder, mikrom, image)) as world:
                world.callers = outside
                yield world
        finally:
            mikrom("destroy", "--yes", code=None)


Attempt = Callable[[GuestWorld], bool]
"""What says whether it was answered."""


class Program(NamedTuple):
    """An ordinary program, with what its network says it is answered, and with what it is not."""

    attempt: Attempt
    passes: tuple[dict[str, Any], ...]
    stops: tuple[dict[str, Any], ...]


def in_guest(ip: str, command: str) -> Attempt:
    """Whether a command succeeds there, where no frame has made it believe in another's MAC."""

    def attempt(_: GuestWorld) -> bool:
        with connect(ip, SHELL_PORT) as shell, shell.makefile("rb") as said:
            shell.sendall(f"(ip neigh flush dev eth0; {command}) >/dev/null 2>&1; echo $?; exit\n".encode())
            return said.read().strip() == b"0"

    return attempt


def call(caller: socket.socket, ip: str) -> bool:
    """Whether the guest's page comes from the published port of this address."""
    caller.settimeout(ANSWER_S)
    with caller, suppress(OSError):
        caller.connect((ip, int(PUBLISHED)))
        caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"200 OK" in caller.recv(100)
    return False


def ask(ip: str, port: str = "80") -> str:
    """For a page; busybox's wget, which Debian has built without names of ports, dies of asking for one."""
    return f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout {ANSWER_S} nc {ip} {port} | grep -q '200 OK'"


PING = f"ping -c 1 -W {ANSWER_S}"
ARPING = f"arping -q -c 1 -w {ANSWER_S}"
SPOOFED_IP = f"""ip address add 10.0.0.77/24 dev eth0; {PING} -I 10.0.0.77 {BOB}; code=$?
ip address del 10.0.0.77/24 dev eth0; exit $code"""
SPOOFED_MAC = f"""own=$(cat /sys/class/net/eth0/address); ip link set eth0 address 02:00:00:00:00:77
{ARPING} {BOB} && {PING} {BOB}; code=$?
ip link set eth0 address $own; {ARPING} {BOB}; exit $code"""

ORDINARY = {
    "ping to the gateway": Program(in_guest(ANN, f"{PING} {GATEWAY}"), ({}, ALONE | DENY, OPEN), ()),
    "to another VM of the network, by the VM's own addresses": Program(in_guest(ANN, ask(BOB)), ({}, OPEN), (ALONE,)),
    "from the address of another machine": Program(in_guest(ANN, SPOOFED_IP), (OPEN,), ({},)),
    "from another MAC": Program(in_guest(ANN, SPOOFED_MAC), (OPEN,), ({},)),
    "to a port of the host, at its gateway": Program(
        in_guest(ANN, ask(GATEWAY, OF_HOST)), ({"host_access": (OF_HOST,)}, OPEN), ({},)
    ),
    "to a machine beyond the network": Program(
        in_guest(ANN, ask(ELSEWHERE)), ({}, ALONE, allow(f"{ELSEWHERE}:80")), (DENY, allow(f"{ELSEWHERE}:81"))
    ),
    "from elsewhere to a published port": Program(
        lambda world: call(world.callers.pop(), OUT), ({}, ALONE | DENY, OPEN), ({"publish": {}},)
    ),
    "from the host itself to a published port": Program(
        lambda _: call(socket.socket(), "127.0.0.1"), ({}, ALONE | DENY, OPEN), ({"publish": {}},)
    ),
    "from another VM to a published port of the host": Program(
        in_guest(BOB, ask(OUT, PUBLISHED)), ({}, DENY, OPEN), (ALONE, {"publish": {}})
    ),
}


def test_of_what_real_guests_send_what_must_pass_passes_and_what_must_not_does_not(world: GuestWorld) -> None:
    assert ORDINARY.keys() <= ROWS.keys()
    rows: dict[str, Row | Program] = {**{f"{what} (a program)": row for what, row in ORDINARY.items()}, **ROWS}
    assert wrong_rows(rows, world.change, world.passes) == []
