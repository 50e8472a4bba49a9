"""Networks as documents describe them: which addresses there are, and which of them a pool may lease.

Addresses are whole numbers in here and text everywhere else. Nothing here leases any (`planning/leases.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Duration, seconds_of
from mikrom_reconcile.core.model.encoding import ready

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
    """One Network document. `reserved` are those that no VM gets: the network's own and its broadcast address, the
    gateway's, and what its document reserves.
    """

    name: str
    cidr: str
    gateway: str
    nat: bool
    pools: dict[str, Pool]
    reserved: tuple[Range, ...]

    def free(self, pool: str) -> Iterator[range]:
        """All addresses that the pool may lease, in order."""
        first, last = self.pools[pool].range.first, self.pools[pool].range.last
        for reserved in sorted(self.reserved, key=lambda reserved: reserved.first):
            yield range(first, min(reserved.first, last + 1))
            first = max(first, reserved.last + 1)
        yield range(first, last + 1)

    def leases(self, pool: str, address: int) -> bool:
        """Whether the pool may lease this address."""
        return pool in self.pools and any(address in free for free in self.free(pool))

    def static_address_mistake(self, ip: str) -> str | None:
        """Why no VM can have the static address `ip`, or None."""
        why = _misplaced(ip, IPv4Network(self.cidr), f"network {self.name} ({self.cidr})")
        if not why and any(int(IPv4Address(ip)) in reserved for reserved in self.reserved):
            why = f"{ip} is the gateway's or reserved in network {self.name}"
        return why


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
    """The network that a document without mistakes describes."""
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
        reserved=(*(Range(each, each) for each in (at, *_ends(network))), *(_range(entry) for entry in body.reserved)),
    )


def network_mistakes(spec: dict[str, Any]) -> Iterator[tuple[Pointer, str]]:
    """What a schema cannot see in a Network document: the place and what is wrong there."""
    body = msgspec.convert(spec, ready(_NetworkBody))
    try:
        network = IPv4Network(body.cidr)
    except ValueError as error:
        yield ("cidr",), f"{body.cidr} is no network: {error}"
        return
    if network.prefixlen > _LONGEST_PREFIX:
        yield ("cidr",), f"{body.cidr} has no room for a gateway and a VM; use /{_LONGEST_PREFIX} or larger"
        return
    if nobodys := next((each for each in _NOBODYS if each.overlaps(network)), None):
        yield ("cidr",), f"{body.cidr} has addresses of {nobodys}, which no VM can have; use one such as 10.20.0.0/20"
    if body.gateway is not None and (why := _misplaced(body.gateway, network, str(network))):
        yield ("gateway",), why
    for number, entry in enumerate(body.reserved):
        if why := _range_mistake(entry, network, {}):
            yield ("reserved", number), why
    taken: dict[str, Range] = {}
    for name, pool in body.pools.items():
        if why := _range_mistake(pool.range, network, taken):
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


def _misplaced(ip: str, network: IPv4Network, named: str) -> str | None:
    """Why `ip` is no address that a machine in the network can have, or None."""
    try:
        address = IPv4Address(ip)
    except AddressValueError:
        return f"{ip} is no IPv4 address"
    if address not in network:
        return f"{ip} is not in {named}"
    return f"{ip} is the network's own or its broadcast address" if int(address) in _ends(network) else None


def _ends(network: IPv4Network) -> tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)


def _range_mistake(text: str, network: IPv4Network, taken: Mapping[str, Range]) -> str | None:
    """Why a range cannot be one of the network's, beside those of pools that have `taken` theirs."""
    try:
        found = _range(text)
    except ValueError as error:
        return f"{text} is no range of addresses: {error}"
    if found.first > found.last:
        return f"{text} runs backwards"
    ends = Range(*_ends(network))
    if found.first not in ends or found.last not in ends:
        return f"{text} is not within {network}"
    other = next((name for name, it in taken.items() if found.first <= it.last and it.first <= found.last), None)
    return None if other is None else f"{text} shares addresses with pool {other}"


def _range(text: str) -> Range:
    """A range from "first-last" or from a network. Raises ValueError."""
    if "/" in text:
        return Range(*_ends(IPv4Network(text)))
    first, _, last = text.partition("-")
    return Range(int(IPv4Address(first)), int(IPv4Address(last)))
