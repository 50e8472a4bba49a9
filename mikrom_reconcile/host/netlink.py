"""The few requests of rtnetlink that a host needs: links, their bridge and alias, and a bridge's address.

A plain socket, because the workers are gevent's: pyroute2 runs an asyncio loop for each request, of which a thread
can have only one at a time, and takes forty times the CPU (docs/adr/0021). Numbers are those of linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface
from types import TracebackType
from typing import Self

import msgspec

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")

_NEWLINK, _DELLINK, _GETLINK, _NEWADDR = 16, 17, 18, 20
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_IFNAME, _MASTER, _LINKINFO, _IFALIAS = 3, 10, 18, 20
_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_UP = 1
_TYPE_MASK = 0x3FFF

_ANSWER_S = 5.0
_ANSWER_BYTES = 1 << 16


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network device. `master` is the index of its bridge, 0 for none."""

    index: int
    name: str
    alias: str
    master: int
    up: bool


class Netlink:
    """A socket to the kernel, of the network namespace of this process. Every method raises OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_ANSWER_S)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def link(self, name: str) -> Link | None:
        """The device of that name, or None."""
        try:
            found = self._ask(_GETLINK, _REQUEST | _ACK, _link() + _named(name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return next((_parsed(content) for kind, content in found if kind == _NEWLINK), None)

    def links(self) -> Iterator[Link]:
        """Every device."""
        for kind, content in self._ask(_GETLINK, _REQUEST | _DUMP, _link()):
            if kind == _NEWLINK:
                yield _parsed(content)

    def add_bridge(self, name: str) -> None:
        """Make a bridge; EEXIST when something has its name."""
        kind = _attribute(_LINKINFO, _attribute(_INFO_KIND, b"bridge"))
        self._ask(_NEWLINK, _REQUEST | _ACK | _CREATE | _EXCL, _link() + _named(name) + kind)

    def set_up(self, index: int, *, alias: str, master: int | None = None) -> None:
        """Give a device its alias and its bridge, and take it up."""
        content = _link(index, flags=_UP, change=_UP) + _attribute(_IFALIAS, alias.encode())
        if master is not None:
            content += _attribute(_MASTER, struct.pack("=I", master))
        self._ask(_NEWLINK, _REQUEST | _ACK, content)

    def delete(self, index: int) -> None:
        """Remove a device; one that is gone already is fine."""
        try:
            self._ask(_DELLINK, _REQUEST | _ACK, _link(index))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def add_address(self, index: int, address: IPv4Interface) -> None:
        """Give a device an IPv4 address; one that it has already is fine."""
        raw = address.ip.packed
        content = _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index)
        content += _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw)
        try:
            self._ask(_NEWADDR, _REQUEST | _ACK | _CREATE | _EXCL, content)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise

    def _ask(self, kind: int, flags: int, content: bytes) -> list[tuple[int, bytes]]:
        """The messages of the answer."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(content), kind, flags, self._sequence, 0) + content)
        answer: list[tuple[int, bytes]] = []
        while True:
            for found, payload in _messages(self._socket.recv(_ANSWER_BYTES), self._sequence):
                if found == _DONE:
                    return answer
                if found == _ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answer
                answer.append((found, payload))


def _messages(data: bytes, sequence: int) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, _, number, _ = _HEADER.unpack_from(data)
        if number == sequence:
            yield kind, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _parsed(content: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(content)
    values: dict[int, bytes] = {}
    rest = content[_LINK.size :]
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        if length < _ATTRIBUTE.size:
            break
        values[kind & _TYPE_MASK] = rest[_ATTRIBUTE.size : length]
        rest = rest[_aligned(length) :]
    return Link(
        index=index,
        name=values.get(_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        alias=values.get(_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        master=struct.unpack("=I", values[_MASTER])[0] if _MASTER in values else 0,
        up=bool(flags & _UP),
    )


def _link(index: int = 0, *, flags: int = 0, change: int = 0) -> bytes:
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, change)


def _named(name: str) -> bytes:
    return _attribute(_IFNAME, name.encode() + b"\0")


def _attribute(kind: int, content: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(content)
    return (_ATTRIBUTE.pack(length, kind) + content).ljust(_aligned(length), b"\0")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
