"""Networks as documents describe them: which addresses there are, and which of them a pool may lease.

Addresses are whole numbers in here and text everywhere else. Nothing here leases any (`addresses.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from typing import Any

import msgspec

from mikrom_reconcile.core.model.devices import Duration
from mikrom_reconcile.core.model.durations import seconds_of
from mikrom_reconcile.core.model.ready import ready

WHOLE = ""
"""The pool of a network that names none."""

Pointer = tuple[str | int, ...]


class Range(msgspec.Struct, frozen=True):
    """Addresses from `first` to `last`, both included."""

    first: int
    last: int

    def __contains__(self, address: int) -> bool:
        return self.first <= address <= self.last


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses that VMs lease. One that came back is not leased again for `cooldown_s` seconds."""

    range: Range
    cooldown_s: float


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One Network document. `kept` are the addresses that no VM gets: the network's own and its broadcast address, the
    gateway's, and what is reserved.
    """

    name: str
    cidr: str
    gateway: str
    nat: bool
    pools: dict[str, Pool]
    kept: tuple[Range, ...]

    def free(self, pool: str) -> Iterator[range]:
        """All addresses that the pool may lease, in order."""
        first, last = self.pools[pool].range.first, self.pools[pool].range.last
        for kept in sorted(self.kept, key=lambda kept: kept.first):
            yield range(first, min(kept.first, last + 1))
            first = max(first, kept.last + 1)
        yield range(first, last + 1)

    def leases(self, pool: str, address: int) -> bool:
        """Whether the pool may lease this address."""
        return pool in self.pools and any(address in free for free in self.free(pool))

    def complaint(self, ip: str) -> str | None:
        """Why no VM can have the static address `ip`, or None."""
        network, address = IPv4Network(self.cidr), _address(ip)
        if address is None or IPv4Address(address) not in network:
            return f"{ip} is no address of network {self.name} ({self.cidr})"
        if address in _ends(network):
            return f"{ip} is the network's own or its broadcast address"
        if any(address in kept for kept in self.kept):
            return f"{ip} is the gateway's or reserved in network {self.name}"
        return None


class _PoolBody(msgspec.Struct, frozen=True):
    range: str
    cooldown: Duration = "10m"


class _NetworkBody(msgspec.Struct, frozen=True):
    """The `spec` of a Network document."""

    cidr: str
    gateway: str | None = None
    nat: bool = False
    pools: dict[str, _PoolBody] = {}
    reserved: tuple[str, ...] = ()


def network_of(name: str, spec: dict[str, Any]) -> Network:
    """The network that a document without flaws describes."""
    body = msgspec.convert(spec, ready(_NetworkBody))
    network = IPv4Network(body.cidr)
    gateway = body.gateway or str(network.network_address + 1)
    at = int(IPv4Address(gateway))
    pools = {
        pool: Pool(range=_range(entry.range), cooldown_s=seconds_of(entry.cooldown))
        for pool, entry in body.pools.items()
    }
    inside = Range(int(network.network_address) + 1, int(network.broadcast_address) - 1)
    return Network(
        name=name,
        cidr=body.cidr,
        gateway=gateway,
        nat=body.nat,
        pools=pools or {WHOLE: Pool(range=inside, cooldown_s=seconds_of(_PoolBody(range="").cooldown))},
        kept=(*(Range(each, each) for each in (at, *_ends(network))), *(_range(entry) for entry in body.reserved)),
    )


def network_flaws(spec: dict[str, Any]) -> Iterator[tuple[Pointer, str]]:
    """What a schema cannot see in a Network document: the place and what is wrong there."""
    body = msgspec.convert(spec, ready(_NetworkBody))
    try:
        network = IPv4Network(body.cidr)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        yield ("cidr",), f"{body.cidr} is no network: {error}"
        return
    if network.prefixlen > _LONGEST_PREFIX:
        yield ("cidr",), f"{body.cidr} has no room for a gateway and a VM; use /{_LONGEST_PREFIX} or larger"
        return
    if nobodys := next((each for each in _NOBODYS if each.overlaps(network)), None):
        yield ("cidr",), f"{body.cidr} has addresses of {nobodys}, which no VM can have; use one such as 10.20.0.0/20"
    if body.gateway is not None and (why := _misplaced(body.gateway, network)):
        yield ("gateway",), why
    for number, entry in enumerate(body.reserved):
        if why := _range_flaw(entry, network):
            yield ("reserved", number), why
    taken: dict[str, Range] = {}
    for name, pool in body.pools.items():
        if why := _range_flaw(pool.range, network) or _overlap(pool.range, taken):
            yield ("pools", name, "range"), why
        else:
            taken[name] = _range(pool.range)


def overlapping(networks: list[Network]) -> Iterator[tuple[str, str]]:
    """Pairs of names of networks that share addresses; the later one first."""
    around: list[tuple[IPv4Network, int]] = []
    for cidr, at in sorted((IPv4Network(network.cidr), at) for at, network in enumerate(networks)):
        while around and not around[-1][0].overlaps(cidr):
            around.pop()
        for _, other in around:
            yield networks[max(at, other)].name, networks[min(at, other)].name
        around.append((cidr, at))


_LONGEST_PREFIX = 30
_NOBODYS = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))
"""Default routes and loopback, what guests read their metadata from, and what is no address of a machine."""


def _misplaced(ip: str, network: IPv4Network) -> str | None:
    address = _address(ip)
    if address is None:
        return f"{ip} is no IPv4 address"
    if IPv4Address(address) not in network:
        return f"{ip} is not in {network}"
    return f"{ip} is the network's own or its broadcast address" if address in _ends(network) else None


def _ends(network: IPv4Network) -> tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)


def _range_flaw(text: str, network: IPv4Network) -> str | None:
    try:
        found = _range(text)
    except ValueError as error:
        return f"{text} is no range of addresses: {error}"
    if found.first > found.last:
        return f"{text} runs backwards"
    ends = Range(*_ends(network))
    return None if found.first in ends and found.last in ends else f"{text} is not within {network}"


def _overlap(text: str, taken: dict[str, Range]) -> str | None:
    found = _range(text)
    other = next((name for name, it in taken.items() if found.first <= it.last and it.first <= found.last), "")
    return f"{text} shares addresses with pool {other}" if other else None


def _range(text: str) -> Range:
    """A range from "first-last" or from a network. Raises ValueError."""
    if "/" in text:
        network = IPv4Network(text)
        return Range(*_ends(network))
    first, _, last = text.partition("-")
    return Range(int(IPv4Address(first)), int(IPv4Address(last)))


def _address(ip: str) -> int | None:
    try:
        return int(IPv4Address(ip))
    except AddressValueError:
        return None
