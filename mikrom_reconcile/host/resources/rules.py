"""What may pass a bridge: the rules that an interface wants, as nftables writes them (docs/networks.md).

Each rule is a chain as a whole, or an element of a set or a map, in the tables that have the name of the bridge: in
family `bridge` what a guest may send, in family `ip` what may be routed. Names begin with the field that a rule serves.
What is a VM's own names its tap. Chains that differ between VMs have a hash of what they say in their names, so that
VMs which change one by one each have their own (docs/adr/0050). Chains that all interfaces of a bridge share stand in
`rules.nft`.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from string import Template
from typing import Final

from mikrom_reconcile.core.model.desired import Egress, NetworkInterface
from mikrom_reconcile.core.specs.networks import destination_of, port_of

PREFIX: Final = "mkb"  # how the names of bridges begin, and so those of their tables

FIELDS: Final = ("nat", "isolation", "egress", "host_access", "publish", "guard")
"""The fields of an interface that rules serve."""

SETS: Final = {
    "bridge guard_taps": "set guard_taps { type ifname;",
    "bridge guard_own": "set guard_own { type ifname . ether_addr . ipv4_addr;",
    "bridge isolation": "set isolation { type ifname;",
    "ip guard_host": "map guard_host { type ipv4_addr : verdict;",
    "ip guard_beyond": "map guard_beyond { type ipv4_addr : verdict;",
    "ip publish": "map publish { type inet_proto . inet_service : verdict;",
}
"""Where there are elements, and how that begins."""

_SHARED = {
    chain.partition("\n")[0].split()[-1]: Template(chain)
    for chain in Path(__file__).with_name("rules.nft").read_text("utf-8").strip().split("\n\n")[1:]
}

_TAP = re.compile(r"mk[0-9a-f]{12}(?![0-9a-f])")


def tap_of(rule: str) -> str:
    """Whose rule it is, "" if it is none of a single tap."""
    return found[0] if (found := _TAP.search(rule)) else ""


def field_of(rule: str) -> str:
    """The field that it serves; what is nobody's is in the way of the guard."""
    home = rule.split()[2 if " chain " in rule else 1]
    return next((field for field in FIELDS if home.startswith(field)), "guard")


def rules_of(nic: NetworkInterface, *, bridge: str, tap: str, mac: str, ip: str | None) -> frozenset[str]:
    """All that an interface wants."""
    masquerade = f'ip saddr {nic.cidr} oifname != "{bridge}" masquerade'
    nat = (_named("nat", "type nat hook postrouting priority 100; policy accept;", masquerade),) if nic.nat else ()
    guard = _guard(nic, bridge, tap, mac, ip) if ip and nic.guard else ()
    return frozenset((*nat, *guard, *(_published(nic.publish, bridge, tap, ip) if ip and nic.publish else ())))


def _guard(nic: NetworkInterface, bridge: str, tap: str, mac: str, ip: str) -> Iterator[str]:
    host, beyond = _judged(bridge, nic.host_access, nic.egress, nic.isolation)
    yield from (*_shared(bridge, "guard_sent", "guard_input", "guard_forward"), host, beyond)
    yield f'bridge guard_taps "{tap}"'
    yield f'bridge guard_own "{tap}" . {mac} . {ip}'
    for name, chain in (("guard_host", host), ("guard_beyond", beyond)):
        yield f'ip {name} {ip} comment "{tap}" : goto {chain.split()[2]}'
    if nic.isolation:
        yield from (*_shared(bridge, "isolation_forward"), f'bridge isolation "{tap}"')


@lru_cache(maxsize=256)
def _judged(bridge: str, host_access: tuple[str, ...], egress: Egress, isolation: bool) -> tuple[str, str]:  # noqa: FBT001
    """The chains of what may reach the host and what may go beyond it. Answers pass before, so that a host can check
    its guests. What a guest began is judged packet by packet, so that a change ends what it forbids.
    """
    ports = (f"{protocol} dport {port} accept" for port, protocol in map(port_of, host_access))
    destinations = (f"{_matched(text)}accept" for text in egress.allow)
    to_each_other, to_others = "drop" if isolation else "accept", "drop" if egress.default == "deny" else "accept"
    return (
        _named("host_access" if host_access else "guard_host", "icmp type echo-request accept", *ports, "drop"),
        _named(
            "guard_beyond" if egress == Egress() else "egress",
            f'oifname "{bridge}" {to_each_other}',
            *destinations,
            "ip daddr 169.254.169.254 drop",
            to_others,
        ),
    )


def _matched(destination: str) -> str:
    """What matches it, with a space behind."""
    network, protocol, ports = destination_of(destination)
    address = f"ip daddr {network.with_prefixlen.removesuffix('/32')} " if network.prefixlen else ""
    return address + (f"{protocol} dport {ports} " if protocol else "")


def _published(publish: Mapping[str, int], bridge: str, tap: str, ip: str) -> Iterator[str]:
    """Ports of the host that lead to the guest, from elsewhere, from the host itself, and from guests of the bridge."""
    name = f"publish_{tap}"
    ports = [(*port_of(text), to) for text, to in sorted(publish.items())]
    lines = (f"{protocol} dport {port} dnat to {ip}:{to}" for port, protocol, to in ports)
    yield "\n".join((f"ip chain {name}", *lines))
    for port, protocol, _ in ports:
        yield f"ip publish {protocol} . {port} : goto {name}"
    # loopback is led there, but from here alone
    yield from _shared(bridge, "publish_in", "publish_out", "publish_loopback", "publish_back")


@lru_cache(maxsize=256)
def _shared(bridge: str, *names: str) -> tuple[str, ...]:
    return tuple(_SHARED[name].substitute(bridge=bridge) for name in names)


def _named(field: str, *lines: str) -> str:
    """A chain of routed packets whose name follows from what it says."""
    said = "\n".join(lines)
    return f"ip chain {field}_{blake2b(said.encode(), digest_size=4).hexdigest()}\n{said}"
