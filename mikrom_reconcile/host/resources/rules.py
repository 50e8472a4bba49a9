"""What may pass a bridge: the rules that an interface wants, as nftables writes them (docs/networks.md).

Each rule is a chain as a whole, or an element of a set or a map, in the tables that have the name of the bridge: in
family `bridge` what a guest may send, in family `ip` what may be routed. Names begin with the field that a rule serves.
What is a VM's own names its tap; the rest is there once for all VMs of the bridge that want it, and chains that differ
between them have a hash of what they say in their names, so that VMs which change one by one each have their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from mikrom_reconcile.core.model.desired import Egress, NetworkInterface
from mikrom_reconcile.core.specs.networks import destination_of, port_of

PREFIX: Final = "mkb"
"""How the names of bridges begin, and so those of their tables."""

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
"""Sets and maps, and how they are declared."""

METADATA_SERVICE: Final = "169.254.169.254"
"""Where clouds tell their machines who they are, and hand out credentials."""

_TAP = re.compile(r"mk[0-9a-f]{12}(?![0-9a-f])")


def tap_of(rule: str) -> str:
    """Whose rule it is, "" if it is none of a single tap."""
    found = _TAP.search(rule)
    return found[0] if found else ""


def field_of(rule: str) -> str:
    """The field that it serves; what is nobody's is in the way of the guard."""
    home = rule.split()[2 if " chain " in rule else 1]
    return next((field for field in FIELDS if home.startswith(field)), "guard")


def rules_of(nic: NetworkInterface, *, bridge: str, tap: str, mac: str, ip: str | None) -> frozenset[str]:
    """All that an interface wants."""
    guard = _guard(nic, bridge, tap, mac, ip) if ip and nic.guard else ()
    published = _published(nic.publish, bridge, tap, ip) if ip and nic.publish else ()
    return frozenset((*((_nat(bridge, nic.cidr),) if nic.nat else ()), *guard, *published))


def _nat(bridge: str, cidr: str) -> str:
    hook = "type nat hook postrouting priority 100; policy accept;"
    return _named("nat", hook, f'ip saddr {cidr} oifname != "{bridge}" masquerade')


def _guard(nic: NetworkInterface, bridge: str, tap: str, mac: str, ip: str) -> Iterator[str]:
    host, beyond, *ways = _judged(bridge, nic.host_access, nic.egress, nic.isolation)
    yield from (_SENT, host, beyond, *ways)
    yield f'bridge guard_taps "{tap}"'
    yield f'bridge guard_own "{tap}" . {mac} . {ip}'
    yield f'ip guard_host {ip} comment "{tap}" : goto {_name_of(host)}'
    yield f'ip guard_beyond {ip} comment "{tap}" : goto {_name_of(beyond)}'
    if nic.isolation:
        yield from (_ISOLATION, f'bridge isolation "{tap}"')


@lru_cache(maxsize=256)
def _judged(bridge: str, host_access: tuple[str, ...], egress: Egress, isolation: bool) -> tuple[str, ...]:  # noqa: FBT001
    """The chains of what may reach the host and what may go beyond it, and those by which packets get there.

    Answers pass, so that a host can check its guests. What a guest began is judged packet by packet, so that a change
    ends what it forbids.
    """
    ports = (f"{protocol} dport {port} accept" for port, protocol in map(port_of, host_access))
    destinations = (f"{_matched(text)}accept" for text in egress.allow)
    to_each_other, to_others = "drop" if isolation else "accept", "drop" if egress.default == "deny" else "accept"
    answers, address = f'iifname "{bridge}" ct direction reply accept', f'iifname "{bridge}" ip saddr vmap'
    return (
        _named("host_access" if host_access else "guard_host", "icmp type echo-request accept", *ports, "drop"),
        _named(
            "guard_beyond" if egress == Egress() else "egress",
            f'oifname "{bridge}" {to_each_other}',
            *destinations,
            f"ip daddr {METADATA_SERVICE} drop",
            to_others,
        ),
        _chain("ip guard_input", _HOOK.format("filter", "input", 0), answers, f"{address} @guard_host"),
        _chain("ip guard_forward", _HOOK.format("filter", "forward", 0), answers, f"{address} @guard_beyond"),
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
    yield _chain(f"ip {name}", *(f"{protocol} dport {port} dnat to {ip}:{to}" for port, protocol, to in ports))
    for port, protocol, _ in ports:
        yield f"ip publish {protocol} . {port} : goto {name}"
    to_local = "fib daddr type local meta l4proto . th dport vmap @publish"
    yield _chain("ip publish_in", _HOOK.format("nat", "prerouting", -100), to_local)
    yield _chain("ip publish_out", _HOOK.format("nat", "output", -100), to_local)
    yield _chain(
        "ip publish_back",
        _HOOK.format("nat", "postrouting", 100),
        f'oifname "{bridge}" ct status dnat ip saddr 127.0.0.0/8 masquerade',
        f'iifname "{bridge}" oifname "{bridge}" ct status dnat masquerade',
    )


_HOOK = "type {} hook {} priority {}; policy accept;"


def _chain(home: str, *lines: str) -> str:
    family, name = home.split()
    return "\n".join((f"{family} chain {name}", *lines))


def _named(field: str, *lines: str) -> str:
    """A chain of routed packets whose name follows from what it says."""
    digest = blake2b("\n".join(lines).encode(), digest_size=4).hexdigest()
    return _chain(f"ip {field}_{digest}", *lines)


def _name_of(chain: str) -> str:
    return chain.split(maxsplit=3)[2]


_SENT = _chain(
    "bridge guard_sent",
    _HOOK.format("filter", "prerouting", -300),
    "iifname . ether saddr . ip saddr @guard_own accept",
    "iifname . ether saddr . arp saddr ip @guard_own iifname . arp saddr ether . arp saddr ip @guard_own accept",
    "iifname @guard_taps drop",
)
_ISOLATION = _chain(
    "bridge isolation_forward",
    _HOOK.format("filter", "forward", 0),
    "iifname @isolation drop",
    "oifname @isolation drop",
)
