"""The few requests of netlink that a host needs, over a plain socket: workers are gevent's (docs/adr/0021)."""

import errno
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Interface
from typing import Self

import msgspec

from mikrom_reconcile.system.files import descriptor
from mikrom_reconcile.times_and_sizes import NETWORKS

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")  # of an error

_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _DELADDR, _GETADDR = 16, 17, 18, 20, 21, 22
_NETFILTER, _GETGEN, _GEN_ID = 12, 10 << 8 | 16, 1  # the number of a ruleset, of linux/netfilter/nf_tables.h
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_INTERRUPTED = 0x10
_IFNAME, _MTU, _MASTER, _LINKINFO, _IFALIAS = 3, 4, 10, 18, 20
_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_UP = 1
_TYPE_MASK = 0x3FFF

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFREQ = struct.Struct("16sH22x")
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, as Firecracker and QEMU open it


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network device. `master` is the index of its bridge, 0 for none."""

    index: int
    name: str
    alias: str
    master: int
    up: bool
    mtu: int


class Netlink:
    """A socket to the kernel, of the network namespace of this process. Every method raises OSError."""

    def __init__(self, family: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.settimeout(NETWORKS.netlink_answer_s)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def link(self, name: str) -> Link | None:
        """The device of that name, or None."""
        found = self.ask(_GETLINK, _REQUEST | _ACK, _link() + _named(name), fine=errno.ENODEV)
        return next((_parsed(content) for kind, content in found if kind == _NEWLINK), None)

    def links(self) -> Iterator[Link]:
        """Every device."""
        for kind, content in self.ask(_GETLINK, _REQUEST | _DUMP, _link()):
            if kind == _NEWLINK:
                yield _parsed(content)

    def add_bridge(self, name: str) -> None:
        """Make a bridge; EEXIST when something has its name."""
        kind = _attribute(_LINKINFO, _attribute(_INFO_KIND, b"bridge"))
        self.ask(_NEWLINK, _REQUEST | _ACK | _CREATE | _EXCL, _link() + _named(name) + kind)

    def set_up(self, index: int, *, alias: str, master: int | None = None, mtu: int = 0) -> None:
        """Give a device its alias, its bridge and its MTU, and take it up."""
        content = _link(index, flags=_UP, change=_UP) + _attribute(_IFALIAS, alias.encode())
        if master is not None:
            content += _attribute(_MASTER, struct.pack("=I", master))
        if mtu:
            content += _attribute(_MTU, struct.pack("=I", mtu))
        self.ask(_NEWLINK, _REQUEST | _ACK, content)

    def delete(self, index: int) -> None:
        """Remove a device; one that is gone already is fine."""
        self.ask(_DELLINK, _REQUEST | _ACK, _link(index), fine=errno.ENODEV)

    def addresses(self) -> dict[int, frozenset[str]]:
        """The IPv4 addresses of each device that has any, such as "10.0.0.1/24"."""
        found: dict[int, frozenset[str]] = {}
        for _, content in self.ask(_GETADDR, _REQUEST | _DUMP, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)):
            _, length, _, _, index = _begin_of(content, _ADDRESS)
            raw = _attributes(content[_ADDRESS.size :]).get(_IFA_LOCAL)
            if raw is not None:
                found[index] = found.get(index, frozenset()) | {f"{socket.inet_ntoa(raw)}/{length}"}
        return found

    def in_subnets_of(self, addresses: Iterable[str]) -> Iterator[Link]:
        """The devices that have an address in the very subnet of one of these."""
        if subnets := {IPv4Interface(address).network for address in addresses}:
            found = self.addresses()
            for link in self.links():
                if not subnets.isdisjoint(IPv4Interface(one).network for one in found.get(link.index, ())):
                    yield link

    def add_address(self, index: int, address: str) -> None:
        """Give a device an IPv4 address; one that it has already is fine."""
        self._change_address(_NEWADDR, _CREATE | _EXCL, index, address, errno.EEXIST)

    def remove_address(self, index: int, address: str) -> None:
        """Take an IPv4 address from a device; one that it does not have is fine."""
        self._change_address(_DELADDR, 0, index, address, errno.EADDRNOTAVAIL)

    def _change_address(self, kind: int, flags: int, index: int, address: str, fine: int) -> None:
        ip, _, length = address.partition("/")
        raw = socket.inet_aton(ip)
        content = _ADDRESS.pack(socket.AF_INET, int(length), 0, 0, index)
        content += _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw)
        self.ask(kind, _REQUEST | _ACK | flags, content, fine=fine)

    def ask(self, kind: int, flags: int, content: bytes, *, fine: int = 0) -> list[tuple[int, bytes]]:
        """The messages of the answer, none for an error that is `fine`; a dump that may lack some is asked anew."""
        give_up_at = time.monotonic() + NETWORKS.netlink_answer_s
        while (answer := self._asked(kind, flags, content, fine)) is None:
            if time.monotonic() > give_up_at:
                raise OSError(errno.EAGAIN, "the kernel's devices change faster than they can be listed")
        return answer

    def _asked(self, kind: int, flags: int, content: bytes, fine: int) -> list[tuple[int, bytes]] | None:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(content), kind, flags, self._sequence, 0) + content)
        answer: list[tuple[int, bytes]] = []
        is_whole = True
        while True:
            for found, flagged, payload in _messages(self._socket.recv(NETWORKS.netlink_answer_bytes), self._sequence):
                is_whole = is_whole and not flagged & _INTERRUPTED
                if found == _DONE:
                    return answer if is_whole else None
                if found == _ERROR:
                    if (code := -_begin_of(payload, _CODE)[0]) not in {0, fine}:
                        raise OSError(code, os.strerror(code))
                    return answer
                answer.append((found, payload))


def rules_generation() -> int | None:
    """The number of nftables' rules, which grows with every change of them; None where it cannot be had."""
    try:
        with Netlink(_NETFILTER) as kernel:
            [(_, content), *_] = kernel.ask(_GETGEN, _REQUEST | _ACK, bytes(4))
    except OSError:
        return None
    return int.from_bytes(_attributes(content[4:])[_GEN_ID], "big")


def _messages(data: bytes, sequence: int) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, flags, number, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        if number == sequence:
            yield kind, flags, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _parsed(content: bytes) -> Link:
    _, _, index, flags, _ = _begin_of(content, _LINK)
    values = _attributes(content[_LINK.size :])
    return Link(
        index=index,
        name=values.get(_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        alias=values.get(_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        master=int.from_bytes(values.get(_MASTER, b""), sys.byteorder),
        up=bool(flags & _UP),
        mtu=int.from_bytes(values.get(_MTU, b""), sys.byteorder),
    )


def _begin_of(content: bytes, form: struct.Struct) -> tuple[int, ...]:
    if len(content) < form.size:
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
    return form.unpack_from(content)


def _attributes(rest: bytes) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        if length < _ATTRIBUTE.size:
            break
        values[kind & _TYPE_MASK] = rest[_ATTRIBUTE.size : length]
        rest = rest[_aligned(length) :]
    return values


def _link(index: int = 0, *, flags: int = 0, change: int = 0) -> bytes:
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, change)


def _named(name: str) -> bytes:
    return _attribute(_IFNAME, name.encode() + b"\0")


def _attribute(kind: int, content: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(content)
    return (_ATTRIBUTE.pack(length, kind) + content).ljust(_aligned(length), b"\0")


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def make_tap(name: str, *, owner: int | None = None) -> None:
    """Make a tap that stays; with an `owner`, let that user open one that nobody else has open. Raises OSError."""
    with descriptor("/dev/net/tun", os.O_RDWR) as tap:
        fcntl.ioctl(tap, _TUNSETIFF, _IFREQ.pack(name.encode(), _TAP_FLAGS))
        fcntl.ioctl(tap, *((_TUNSETPERSIST, 1) if owner is None else (_TUNSETOWNER, owner)))
