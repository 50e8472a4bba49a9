"""Networks as documents describe them: which addresses there are, and which of them a pool may lease."""

from collections.abc import Iterator, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any

import msgspec

from mikrom_reconcile.core.model import desired, documents
from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.times_and_sizes import SPECS

WHOLE = ""  # the pool of a network that names none
OF_INTERFACES = ("cidr", "gateway", "nat", "guard", "isolation", "egress", "host_access")
"""What a network says for all interfaces that are on it."""

_COOLDOWN = "10m"


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses that VMs lease. One that came back is not leased again for `cooldown_s` seconds."""

    addresses: range
    cooldown_s: float


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One Network document. `reserved`: the network's own, its broadcast and gateway's address, and what it says."""

    name: str
    cidr: str
    gateway: str
    nat: bool = False
    guard: bool = True
    isolation: bool = False
    egress: desired.Egress = desired.Egress()
    host_access: tuple[str, ...]
    pools: dict[str, Pool]
    reserved: tuple[range, ...]

    def free(self, pool: str) -> Iterator[range]:
        """All addresses that the pool may lease, in order."""
        addresses = self.pools[pool].addresses
        first = addresses.start
        for reserved in sorted(self.reserved, key=lambda reserved: reserved.start):
            yield range(first, min(reserved.start, addresses.stop))
            first = max(first, reserved.stop)
        yield range(first, addresses.stop)

    def leases(self, pool: str, address: int) -> bool:
        """Whether the pool may lease this address."""
        return pool in self.pools and any(address in free for free in self.free(pool))

    def static_address_mistake(self, ip: str) -> str | None:
        """Why no VM can have the static address `ip`, or None."""
        why = _misplaced(ip, IPv4Network(self.cidr), f"network {self.name} ({self.cidr})")
        if not why and any(int(IPv4Address(ip)) in reserved for reserved in self.reserved):
            why = f"{ip} is the gateway's or reserved in network {self.name}"
        return why


def network_of(name: str, spec: dict[str, Any]) -> Network:
    """The network that a document without mistakes describes."""
    inside = _range(spec["cidr"])
    gateway = spec.get("gateway") or str(IPv4Address(inside[1]))
    said = ((pool, it["range"], it.get("cooldown", _COOLDOWN)) for pool, it in spec.get("pools", {}).items())
    pools = {name: Pool(addresses=_range(text), cooldown_s=desired.seconds_of(time)) for name, text, time in said}
    taken = (int(IPv4Address(gateway)), inside[0], inside[-1])
    fields = spec | {
        "name": name,
        "gateway": gateway,
        "host_access": list(map(str, spec.get("host_access", ()))),
        "pools": pools or {WHOLE: Pool(addresses=inside[1:-1], cooldown_s=desired.seconds_of(_COOLDOWN))},
        "reserved": [*(range(each, each + 1) for each in taken), *map(_range, spec.get("reserved", ()))],
    }
    return msgspec.convert(fields, ready(Network))


def network_mistakes(spec: dict[str, Any]) -> Iterator[tuple[documents.Pointer, str]]:
    """What a schema cannot see in a Network document: the place and what is wrong there."""
    cidr = spec["cidr"]
    try:
        network = IPv4Network(cidr)
    except ValueError as error:
        yield ("cidr",), f"{cidr} is no network: {error}"
        return
    if network.prefixlen > _LONGEST_PREFIX:
        yield ("cidr",), f"{cidr} has no room for a gateway and a VM; use /{_LONGEST_PREFIX} or larger"
        return
    if nobodys := next((each for each in _NOBODYS if each.overlaps(network)), None):
        yield ("cidr",), f"{cidr} has addresses of {nobodys}, which no VM can have; use one such as 10.20.0.0/20"
    if "gateway" in spec and (why := _misplaced(spec["gateway"], network, str(network))):
        yield ("gateway",), why
    yield from _rule_mistakes(spec)
    for number, entry in enumerate(spec.get("reserved", ())):
        if why := _range_mistake(entry, network, {}):
            yield ("reserved", number), why
    taken: dict[str, range] = {}
    for name, pool in spec.get("pools", {}).items():
        if why := _range_mistake(pool["range"], network, taken):
            yield ("pools", name, "range"), why
        else:
            taken[name] = _range(pool["range"])


def _rule_mistakes(spec: dict[str, Any]) -> Iterator[tuple[documents.Pointer, str]]:
    if not spec.get("guard", True) and any(map(spec.get, ("isolation", "egress", "host_access"))):
        yield ("guard",), "isolation, egress and host_access need it: without guard a VM could send from any address"
    allowed = (("egress", "allow"), spec.get("egress", {}).get("allow", ()), destination_of)
    for path, entries, parsed in (allowed, (("host_access",), spec.get("host_access", ()), port_of)):
        for number, entry in enumerate(entries):
            try:
                parsed(str(entry))
            except ValueError as error:
                yield (*path, number), f"{entry} cannot be here: {error}"


def destination_of(text: str) -> tuple[IPv4Network, str, str]:
    """Network, protocol and ports of "10.0.0.1:53/udp", "10.0.0.1:80-90", "10.0.0.0/8" (neither). Raises ValueError."""
    address, _, service = text.partition(":")
    ports, _, protocol = service.partition("/")
    bounds = [port_of(port)[0] for port in ports.split("-") if port]
    if bounds != sorted(bounds):
        raise ValueError(f"{ports} runs backwards")
    return IPv4Network(address), (protocol or "tcp") if bounds else "", "-".join(map(str, dict.fromkeys(bounds)))


def port_name(text: str) -> str:
    """A port such as "80" as "80/tcp"."""
    return text if "/" in text else f"{text}/tcp"


def port_of(text: str) -> tuple[int, str]:
    """The number and the protocol of a port such as "80" or "53/udp". Raises ValueError."""
    number, _, protocol = port_name(text).partition("/")
    if not 1 <= int(number) <= SPECS.last_port:
        raise ValueError(f"ports are 1 to {SPECS.last_port}")
    return int(number), protocol


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
    try:
        address = IPv4Address(ip)
    except AddressValueError:
        return f"{ip} is no IPv4 address"
    if address not in network:
        return f"{ip} is not in {named}"
    is_end = address in {network.network_address, network.broadcast_address}
    return f"{ip} is the network's own or its broadcast address" if is_end else None


def _range_mistake(text: str, network: IPv4Network, taken: Mapping[str, range]) -> str | None:
    """Why a range cannot be one of the network's, beside those of pools that have `taken` theirs."""
    try:
        found = _range(text)
    except ValueError as error:
        return f"{text} is no range of addresses: {error}"
    if not found:
        return f"{text} runs backwards"
    inside = _range(str(network))
    if found[0] not in inside or found[-1] not in inside:
        return f"{text} is not within {network}"
    other = next((name for name, it in taken.items() if found.start < it.stop and it.start < found.stop), None)
    return None if other is None else f"{text} shares addresses with pool {other}"


def _range(text: str) -> range:
    """The addresses from the first to the last of "first-last", or of a network. Raises ValueError."""
    if "/" in text:
        network = IPv4Network(text)
        first, last = network.network_address, network.broadcast_address
    else:
        first, last = map(IPv4Address, text.split("-"))
    return range(int(first), int(last) + 1)
