"""Packets that must pass a bridge, and packets that must not, sent and looked for at taps as guests would.

The table is the one of docs/networks.md. Where a packet is stopped it passes once what stops it is taken away, so that
nothing is stopped by accident.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Egress, NetworkInterface, VMSpec
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.networks import Networks
from mikrom_reconcile.system.netlink import Netlink
from tests.contract.drivers import record_of, wait_until
from tests.netns import own_namespace

GATEWAY, ANN, BOB = "10.0.0.1", "10.0.0.8", "10.0.0.9"
HOST, SERVER, METADATA = "192.0.2.1", "192.0.2.9", "169.254.169.254"
FILTERS = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
PORTS = itertools.count(20000)
EVERYBODY = b"\xff" * 6
OF_NOBODY = bytes.fromhex("020000000077")
_TUNSETIFF, _TUNSETPERSIST, _SIOCGIFHWADDR = 0x400454CA, 0x400454CB, 0x8927


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def ethernet(source: bytes, target: bytes, kind: int, content: bytes) -> bytes:
    return target + source + struct.pack("!H", kind) + content


def arp(mac: bytes, ip: str, asked: str, *, sender: bytes = b"") -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    content = head + (sender or mac) + socket.inet_aton(ip) + bytes(6) + socket.inet_aton(asked)
    return ethernet(mac, EVERYBODY, 0x0806, content)


def ipv4(source: str, target: str, protocol: int, content: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 7, 0, 64, protocol, 0)
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    return head[:10] + struct.pack("!H", checksum(head + ends)) + ends + content


def ipv6(content: bytes) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, "fe80::8") + socket.inet_pton(socket.AF_INET6, "fe80::9")
    return struct.pack("!IHBB", 6 << 28, len(content), 59, 64) + ends + content


def udp(source: str, target: str, port: int, content: bytes, own_port: int = 0) -> bytes:
    """Of a new connection, unless it is the answer from a port: one that is open stays as it was begun."""
    return ipv4(source, target, 17, struct.pack("!HHHH", own_port or next(PORTS), port, 8 + len(content), 0) + content)


def ping(source: str, target: str, content: bytes) -> bytes:
    body = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + content + bytes(len(content) % 2)
    return ipv4(source, target, 1, body[:2] + struct.pack("!H", checksum(body)) + body[4:])


class Wire:
    """The end of a link: of a guest, or of a machine elsewhere."""

    def __init__(self, name: str, mac: bytes, ip: str, router: str) -> None:
        self.mac, self.ip, self.router, self.name = mac, ip, router, name
        self.got: list[bytes] = []
        self.router_mac = b""

    def send(self, frame: bytes) -> None:
        raise NotImplementedError

    def receive(self) -> bytes:
        """The next frame that has arrived; a BlockingIOError where none has."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def send_ip(self, packet: bytes, to: bytes = b"") -> None:
        self.send(ethernet(self.mac, to or self.router_mac, 0x0800, packet))

    def count(self, part: bytes) -> int:
        """How many frames with it have arrived since the last packet of the table."""
        with suppress(BlockingIOError):
            while True:
                self.got.append(self.receive())
        return sum(part in frame for frame in self.got)

    def is_known(self) -> bool:
        """Whether the host has answered: a bridge takes a while until it listens to a new tap."""
        self.send(arp(self.mac, self.ip, self.router))
        return self.count(struct.pack("!H", 2) + self.router_mac) > 0

    def settle(self) -> None:
        """Be answered by the host: what was sent before has arrived, or never will."""
        answer = struct.pack("!H", 2) + self.router_mac + socket.inet_aton(self.router)
        before = self.count(answer)
        self.send(arp(self.mac, self.ip, self.router))
        wait_until(lambda: self.count(answer) > before, f"an answer to {self.name}")


class Tap(Wire):
    """A tap in the place of a guest's VMM."""

    def __init__(self, name: str, mac: bytes, ip: str, router: str) -> None:
        super().__init__(name, mac, ip, router)
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000 | 0x4000))

    def send(self, frame: bytes) -> None:
        os.write(self.fd, bytes(10) + frame)

    def receive(self) -> bytes:
        return os.read(self.fd, 1 << 16)[10:]

    def close(self) -> None:
        os.close(self.fd)


class World:
    """A host with two VMs on one bridge, and a network with a server beyond it."""

    wire: type[Wire] = Tap

    def __init__(self, state_dir: Path) -> None:
        self.networks, self.records, self.vms = Networks(state_dir), Records(state_dir), dict[str, VMRecord]()
        self.host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server = Tap("up0", bytes.fromhex("020000000099"), SERVER, HOST)
        fcntl.ioctl(self.server.fd, _TUNSETPERSIST, 1)
        with Netlink() as kernel:
            uplink = kernel.link("up0")
            assert uplink is not None
            kernel.set_up(uplink.index, alias="")
            kernel.add_address(uplink.index, f"{HOST}/24")
            kernel.add_address(uplink.index, "169.254.169.1/24")
        self.change({})
        self.ann, self.bob = (self.guest(name, ip) for name, ip in (("ann", ANN), ("bob", BOB)))
        for wire in (self.ann, self.bob, self.server):
            wire.router_mac = mac_of_device("up0" if wire is self.server else self.bridge)
            wait_until(wire.is_known, f"{wire.name} to be on")
        self.host.setblocking(False)  # noqa: FBT003
        self.host.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self.host.bind(("", 53))

    def guest(self, name: str, ip: str) -> Wire:
        interface, *_ = self.networks.of(self.vms[name])
        self.bridge = interface.bridge
        return self.wire(interface.tap, bytes.fromhex(interface.mac.replace(":", "")), ip, GATEWAY)

    def change(self, fields: dict[str, Any]) -> None:
        """Have the network say something else, while its VMs run."""
        base = {"network": "prod", "cidr": "10.0.0.0/24", "gateway": GATEWAY, "nat": True}
        for name, ip in (("ann", ANN), ("bob", BOB)):
            nic = NetworkInterface(**{**base, "publish": {"8053/udp": 53} if name == "ann" else {}, **fields})
            spec = VMSpec(image="hello", network_interfaces={"eth0": nic})
            self.vms[name] = replace(record_of(name), spec=spec, addresses={"eth0": ip})
            self.records.write(self.vms[name])
        for record in self.vms.values():
            self.networks.prepare(record, give_up_at=float("inf"))

    def close(self) -> None:
        for wire in (self.ann, self.bob, self.server):
            wire.close()
        self.host.close()

    def arrives(self, what: str, row: Row) -> bool:
        """Whether who is to get the packet does."""
        token = f"<{what}>".encode()
        wires = {"ann": self.ann, "bob": self.bob, "server": self.server}
        for wire in wires.values():
            wire.count(b"")
            wire.got.clear()
        self.server.send(arp(self.server.mac, METADATA, "169.254.169.1"))  # who answers no probe is soon forgotten
        row.send(self, token)
        for wire in (*wires.values(), *wires.values()):  # what one has sent, another gets
            wire.settle()
        if row.to != "host":
            return wires[row.to].count(token) > 0
        told = b""
        with suppress(BlockingIOError):
            while True:
                told += self.host.recv(1000)
        return token in told


def mac_of_device(name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        return bytes(fcntl.ioctl(asked.fileno(), _SIOCGIFHWADDR, struct.pack("16s16x8x", name.encode()))[18:24])


Packet = Callable[[World, bytes], None]
"""What sends it, with a token by which it is known."""


class Row(NamedTuple):
    """A packet, who is to get it, with what its network says it passes, and with what it does not."""

    send: Packet
    to: str
    passes: tuple[dict[str, Any], ...]
    stops: tuple[dict[str, Any], ...]


class Expected(Protocol):
    @property
    def passes(self) -> tuple[dict[str, Any], ...]: ...
    @property
    def stops(self) -> tuple[dict[str, Any], ...]: ...


RowT = TypeVar("RowT", bound=Expected)

OPEN: dict[str, Any] = {"guard": False}
ALONE: dict[str, Any] = {"isolation": True}
DENY: dict[str, Any] = {"egress": Egress(default="deny")}
HOST_53: dict[str, Any] = {"host_access": ("53/udp",)}


def allow(*destinations: str) -> dict[str, Any]:
    return {"egress": Egress(default="deny", allow=destinations)}


def to_bob(source: str = ANN, mac: bytes = b"") -> Packet:
    return lambda world, token: world.ann.send(
        ethernet(mac or world.ann.mac, world.bob.mac, 0x0800, udp(source, BOB, 9, token))
    )


def to(target: str, port: int = 53) -> Packet:
    return lambda world, token: world.ann.send_ip(udp(ANN, target, port, token))


def asks(ip: str, *, mac: bytes = b"", sender: bytes = b"") -> Packet:
    return lambda world, token: world.ann.send(arp(mac or world.ann.mac, ip, BOB, sender=sender) + token)


def answer_of_ann(world: World, token: bytes) -> None:
    world.host.sendto(b"asked", (ANN, 7))
    world.ann.send_ip(udp(ANN, GATEWAY, 53, token, own_port=7))


def answer_to_server(world: World, token: bytes) -> None:
    port = next(PORTS)
    world.server.send_ip(udp(SERVER, HOST, 8053, b"asked", port))
    world.ann.send_ip(udp(ANN, SERVER, port, token, own_port=53))


def from_the_host(world: World, token: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.sendto(token, ("127.0.0.1", 8053))


def tagged(world: World, token: bytes) -> None:
    tag = struct.pack("!HH", 7, 0x0800)
    world.ann.send(ethernet(world.ann.mac, world.bob.mac, 0x8100, tag + udp("10.0.0.77", BOB, 9, token)))


ROWS = {
    "to another VM of the network, by the VM's own addresses": Row(to_bob(), "bob", ({}, DENY, OPEN), (ALONE,)),
    "to another VM, by way of the gateway": Row(to(BOB), "bob", ({}, DENY), (ALONE, ALONE | allow("0.0.0.0/0"))),
    "from the address of another machine": Row(to_bob("10.0.0.77"), "bob", (OPEN,), ({},)),
    "from the address of the gateway": Row(to_bob(GATEWAY), "bob", (OPEN,), ({},)),
    "from another MAC": Row(to_bob(mac=OF_NOBODY), "bob", (OPEN,), ({},)),
    "from another machine's address, with a VLAN tag": Row(tagged, "bob", (OPEN,), ({},)),
    "ARP of its own address": Row(asks(ANN), "bob", ({}, OPEN), (ALONE,)),
    "ARP that takes the gateway's address": Row(asks(GATEWAY), "bob", (OPEN,), ({},)),
    "ARP with another MAC inside": Row(asks(ANN, sender=OF_NOBODY), "bob", (OPEN,), ({},)),
    "ARP from another MAC": Row(asks(ANN, mac=OF_NOBODY, sender=OF_NOBODY), "bob", (OPEN,), ({},)),
    "IPv6": Row(
        lambda world, token: world.ann.send(ethernet(world.ann.mac, world.bob.mac, 0x86DD, ipv6(token))),
        "bob",
        (OPEN,),
        ({},),
    ),
    "ping to the gateway": Row(
        lambda world, token: world.ann.send_ip(ping(ANN, GATEWAY, token)), "ann", ({}, ALONE, DENY, OPEN), ()
    ),
    "to a port of the host, at its gateway": Row(
        to(GATEWAY), "host", (HOST_53, OPEN), ({}, {"host_access": ("53", "54/udp")})
    ),
    "to a port of the host, at its other addresses": Row(to(HOST), "host", (HOST_53, OPEN), ({}, allow("0.0.0.0/0"))),
    "to a port of the host, to everybody": Row(
        lambda world, token: world.ann.send_ip(udp(ANN, "255.255.255.255", 53, token), EVERYBODY),
        "host",
        (HOST_53, OPEN),
        ({},),
    ),
    "to the loopback of the host": Row(to("127.0.0.1"), "host", (), ({}, OPEN, HOST_53)),
    "answers to the host, such as those to a check": Row(answer_of_ann, "host", ({}, ALONE | DENY, OPEN), ()),
    "to a machine beyond the network": Row(
        to(SERVER),
        "server",
        ({}, ALONE, OPEN, allow("192.0.2.0/24:53/udp"), allow(SERVER), allow("0.0.0.0/0:50-60/udp")),
        (DENY, allow("192.0.2.0/24:53"), allow("192.0.2.0/24:54/udp"), allow("192.0.2.8:53/udp")),
    ),
    "to the metadata service of a cloud": Row(
        to(METADATA), "server", (OPEN, {"egress": Egress(allow=(f"{METADATA}:53/udp",))}), ({}, DENY)
    ),
    "from elsewhere to a published port": Row(
        lambda world, token: world.server.send_ip(udp(SERVER, HOST, 8053, token)),
        "ann",
        ({}, ALONE | DENY, OPEN),
        ({"publish": {}},),
    ),
    "answers from a published port": Row(answer_to_server, "server", ({}, ALONE | DENY, OPEN), ()),
    "from the host itself to a published port": Row(from_the_host, "ann", ({}, ALONE | DENY, OPEN), ({"publish": {}},)),
    "from another VM to a published port of the host": Row(
        lambda world, token: world.bob.send_ip(udp(BOB, HOST, 8053, token)),
        "ann",
        ({}, DENY, OPEN),
        (ALONE, {"publish": {}}),
    ),
}


@pytest.fixture(params=["1", "0"], ids=["bridges filtered as routers", "bridges not filtered"])
def world(request: pytest.FixtureRequest, own_environment: Path) -> Iterator[World]:
    with own_namespace():
        if FILTERS.exists():
            FILTERS.write_text(request.param)
        elif request.param == "1":
            pytest.skip("this kernel cannot filter bridges as routers")
        made = World(own_environment)
        yield made
        made.close()


def wrong_rows(
    rows: Mapping[str, RowT], change: Callable[[dict[str, Any]], None], passed: Callable[[str, RowT], bool]
) -> list[tuple[str, str]]:
    """What passed but must not, or the other way round, each with what its network said."""
    cases = [
        (str(fields), fields, what, passes)
        for what, row in rows.items()
        for passes, networks in ((True, row.passes), (False, row.stops))
        for fields in networks
    ]
    before, wrong = None, []
    for network, fields, what, passes in sorted(cases, key=lambda case: case[0]):
        if network != before:
            change(fields)
        before = network
        has_passed = passed(what, rows[what])
        print(f"{'passes' if has_passed else 'is stopped':<11}{what}: {network}")  # noqa: T201
        if has_passed != passes:
            wrong.append((what, network))
    return wrong


def test_what_must_pass_passes_and_what_must_not_does_not(world: World) -> None:
    assert wrong_rows(ROWS, world.change, world.arrives) == []
