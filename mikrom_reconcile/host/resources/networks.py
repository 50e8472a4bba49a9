"""Links of VMs: a bridge for each network, a tap for each interface, NAT where a network wants it.

Names follow from hashes, because Linux takes 15 characters; the alias of a device says whose it is, and one that is
not ours is never touched. What is there is found by its alias, so whatever a killed worker left is swept up.

A bridge has parts: addresses such as "10.0.0.1/24", and rules (`rules.py`). Of those that are no VM's own it is to have
what the records of VMs want, and no others: those of VMs which are down, too, so that nothing changes for the rest when
one stops; while a network changes, both the old and the new.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from ipaddress import IPv4Network
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from mikrom_reconcile.core.model.desired import NetworkInterface
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import Drift
from mikrom_reconcile.host.errors import translate_errors
from mikrom_reconcile.host.ports import LinkDrift, VMRecord
from mikrom_reconcile.host.records import Records, UnreadableRecord
from mikrom_reconcile.host.resources.nft import ByTap, Rules
from mikrom_reconcile.host.resources.rules import PREFIX, field_of, rules_of
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.netlink import Link, Netlink, make_tap
from mikrom_reconcile.times_and_sizes import NETWORKS

Parts = frozenset[str]  # what a bridge has or is to have. An address has no space in it, a rule has.


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a VM as its VMM opens it, and what its host makes for it. `bandwidth_mbit` None: no limit; `mtu`
    None: nobody said one. `wants` is what it wants of its bridge. The aliases are those of its tap and its bridge.
    """

    name: str
    tap: str
    mac: str
    bandwidth_mbit: int | None = None
    mtu: int | None = None
    alias: str = ""
    bridge: str = ""
    bridge_alias: str = ""
    wants: Parts = frozenset()


class Networks:
    """The links of one state folder, in the network namespace of this process."""

    def __init__(self, state_dir: Path) -> None:
        self._locks = state_dir / "locks"
        self._owner = _hash(str(state_dir), 4)
        self._prefix = f"mikrom:{self._owner}:"
        self._records = Records(state_dir)
        self._rules = Rules()

    def of(self, record: VMRecord) -> tuple[Interface, ...]:
        """The VM's interfaces in the order in which its guest sees them, whether their taps are there or not."""
        return tuple(self._interface(record, name, nic) for name, nic in sorted(record.spec.network_interfaces.items()))

    def _interface(self, record: VMRecord, name: str, nic: NetworkInterface) -> Interface:
        bridge = f"{PREFIX}{_hash(f'{self._owner} {record.project} {nic.network}', 6)}"
        address = f"{nic.gateway}/{IPv4Network(nic.cidr).prefixlen}"
        tap, mac = f"mk{_hash(f'{self._owner} {record.home} {name}', 6)}", mac_of(record, name)
        return Interface(
            name=name,
            tap=tap,
            mac=mac,
            bandwidth_mbit=nic.rate_limiter.bandwidth_mbit,
            mtu=nic.mtu,
            alias=f"{self._prefix}vm={record.home}:nic={name}",
            bridge=bridge,
            bridge_alias=f"{self._prefix}network={record.project}/{nic.network}",
            wants=rules_of(nic, bridge=bridge, tap=tap, mac=mac, ip=record.addresses.get(name)) | {address},
        )

    def prepare(self, record: VMRecord, *, give_up_at: float, only_mend: bool = False) -> tuple[Interface, ...]:
        """The VM's interfaces: make missing links, remove unwanted ones. Raises PermanentError if somebody has a name,
        TemporaryError, OSError. With `only_mend` a tap that is gone stays so: the VMM that runs has lost it, and would
        not get a new one.
        """
        if not (interfaces := self.of(record)):
            return ()
        with translate_errors(record.vm, "making its links"), Netlink() as kernel:
            for interface in interfaces:
                if only_mend and kernel.link(interface.tap) is None:
                    continue
                self._forget(interface.tap, give_up_at, but=interface.bridge)
                with self._bridge_lock(interface.bridge, give_up_at):
                    bridge = self._prepare_bridge(kernel, record, interface)
                    tap = _device(kernel, "tap", interface.tap, interface.alias, make_tap)
                    mtu = interface.mtu or (0 if only_mend else NETWORKS.mtu)
                    kernel.set_up(tap.index, alias=interface.alias, master=bridge.index, mtu=mtu)
                if tap.master not in {0, bridge.index}:
                    self._remove_unused_bridges(kernel, give_up_at)
        return interfaces

    def in_place(self, record: VMRecord) -> tuple[Interface, ...]:
        """The interfaces whose taps are there and ours. Raises OSError."""
        if not record.spec.network_interfaces:
            return ()
        with Netlink() as kernel:
            taps = ((interface, kernel.link(interface.tap)) for interface in self.of(record))
            return tuple(interface for interface, tap in taps if tap and tap.alias == interface.alias)

    def drift(self, but: str = "") -> LinkDrift:
        """Compares links of VMs with their records, and asks about each bridge once. The VM `but` counts as gone."""
        bridge_of = cache(self._find_bridge)
        unwanted_of = cache(lambda name: self._unwanted(bridge_of(name).shared, name, but))

        def drift_of(record: VMRecord) -> tuple[Drift, ...]:
            drift: list[Drift] = []
            with translate_errors(record.vm, "looking at its links"), Netlink() as kernel:
                for interface in self.of(record):
                    tap, bridge = kernel.link(interface.tap), bridge_of(interface.bridge)
                    if tap is None or tap.alias != interface.alias:
                        continue  # the VMM has lost it, and its driver says so
                    unwanted = bridge.shared - self._wanted_by(record, interface.bridge)
                    if unwanted:
                        unwanted &= unwanted_of(interface.bridge)
                    own = bridge.rules.get(interface.tap, frozenset())
                    drift += _drift(interface, tap, bridge, unwanted | (own - interface.wants))
            return tuple(drift)

        return drift_of

    def remove(self, record: VMRecord, *, give_up_at: float) -> None:
        """Remove the VM's taps, those of earlier specs too, and bridges or parts of them that nobody wants any more."""
        prefix = f"{self._prefix}vm={record.home}:"
        with Netlink() as kernel:
            self._remove_taps(kernel, lambda tap: tap.alias.startswith(prefix), give_up_at)
            for interface in self.of(record):
                with self._bridge_lock(interface.bridge, give_up_at):
                    bridge = kernel.link(interface.bridge)
                    if bridge is None:
                        self._drop_rules(interface.bridge)
                    elif bridge.alias.startswith(self._prefix):
                        self._set_parts(kernel, record, bridge, frozenset())

    def sweep(self, *, give_up_at: float) -> tuple[str, ...]:
        """Remove taps of ours that no record wants; the names of their VMs. Raises MikromError, OSError."""
        with Netlink() as kernel:
            return self._remove_taps(kernel, self._is_left, give_up_at)

    def _is_left(self, tap: Link) -> bool:
        """Whether no record wants a tap of ours: a VM is recorded before its taps are made."""
        home = self._vm_of(tap)
        found = self._records.at(home) if home else None
        if isinstance(found, VMRecord):
            return tap.alias not in {interface.alias for interface in self.of(found)}
        return bool(home) and found is None

    def _remove_taps(self, kernel: Netlink, which: Callable[[Link], bool], give_up_at: float) -> tuple[str, ...]:
        """Remove taps, and bridges that have none any more; whose taps those were."""
        taps = [link for link in kernel.links() if which(link)]
        for tap in taps:
            kernel.delete(tap.index)
            self._forget(tap.name, give_up_at)
        if taps:
            self._remove_unused_bridges(kernel, give_up_at)
        return tuple(self._vm_of(tap) for tap in taps)

    def _forget(self, tap: str, give_up_at: float, but: str = "") -> None:
        """Take away what bridges say of a tap that is gone, or is on the bridge `but` now: all judge it."""
        for bridge in self._rules.with_tap(tap):
            if bridge != but:
                with self._bridge_lock(bridge, give_up_at):
                    rules = (self._rules.of(bridge) or {}).get(tap, frozenset())
                    self._rules.change(bridge, add=(), take=rules)

    def _vm_of(self, link: Link) -> str:
        """Whose tap it is, by the name of the VM's folder; "" if it is none of ours."""
        prefix = f"{self._prefix}vm="
        return link.alias.removeprefix(prefix).partition(":")[0] if link.alias.startswith(prefix) else ""

    @contextmanager
    def _bridge_lock(self, bridge: str, give_up_at: float) -> Iterator[None]:
        """Nobody else makes or drops the bridge meanwhile."""
        path = self._locks / f"bridge-{bridge}.lock"
        with locks.held(path, until=give_up_at, poll_s=NETWORKS.lock_poll_s) as is_ours:
            if not is_ours:
                raise TemporaryError(f"another process still works on bridge {bridge}")
            yield

    def _prepare_bridge(self, kernel: Netlink, record: VMRecord, interface: Interface) -> Link:
        name, alias = interface.bridge, interface.bridge_alias
        own = self._wanted_by(record, name)
        there, addresses = kernel.link(name), frozenset(filter(_is_address, own))
        has_all = there is not None and addresses <= kernel.addresses().get(there.index, frozenset())
        in_subnet = {} if has_all else {link.name: link for link in kernel.in_subnets_of(addresses)}
        for link in in_subnet.values():
            if name not in in_subnet and not link.alias.startswith(self._prefix):
                network = record.spec.network_interfaces[interface.name].network
                raise _taken(f"the subnet of network {network}, with device {link.name},", link)
        bridge = _device(kernel, "bridge", name, alias, kernel.add_bridge)
        self._set_parts(kernel, record, bridge, own)
        if not bridge.up or bridge.alias != alias:
            kernel.set_up(bridge.index, alias=alias)
        return bridge

    def _find_bridge(self, name: str) -> _Bridge:
        with Netlink() as kernel:
            link = kernel.link(name)
            return self._bridge_of(kernel, link) if link else _Bridge()

    def _bridge_of(self, kernel: Netlink, link: Link) -> _Bridge:
        rules, addresses = self._rules.of(link.name), kernel.addresses().get(link.index, frozenset())
        return _Bridge(link, addresses | (rules or {}).get("", frozenset()), rules or {}, rules is not None)

    def _wanted_by(self, record: VMRecord, bridge: str) -> Parts:
        own = (interface.wants for interface in self.of(record) if interface.bridge == bridge)
        return frozenset[str]().union(*own)

    def _unwanted(self, parts: Parts, bridge: str, but: str) -> Parts:
        """Those of the parts that no VM wants, up or down, `but` one; none while a record cannot be read."""
        names = self._records.names() if parts else ()
        # the VMs after it first: while all of a fleet change, those still want what it has left
        for name in (*(name for name in names if name > but), *(name for name in names if name < but)):
            if not parts:
                break
            found = self._records.read(name)
            if isinstance(found, UnreadableRecord):
                return frozenset()  # its VM may want anything
            if found is not None and found.state != "absent":
                parts -= self._wanted_by(found, bridge)
        return parts

    def _set_parts(self, kernel: Netlink, record: VMRecord, link: Link, own: Parts) -> None:
        """Give a bridge what the VM wants, and leave it what others want."""
        bridge = self._bridge_of(kernel, link)
        of_taps = frozenset[str]().union(*(bridge.rules.get(interface.tap, ()) for interface in self.of(record)))
        unwanted = (of_taps - own) | self._unwanted(bridge.shared - own, link.name, record.vm)
        missing = own - of_taps - bridge.shared
        for address in filter(_is_address, unwanted):
            kernel.remove_address(link.index, address)
        for address in filter(_is_address, (own | bridge.shared) - unwanted if unwanted or missing else ()):
            kernel.add_address(link.index, address)  # Linux removes others of a subnet along with its first
        if add_or_take := _rules_in(missing | unwanted):
            _refuse_used_ports(missing)
            self._rules.change(link.name, add=add_or_take & missing, take=add_or_take & unwanted)

    def _drop_rules(self, bridge: str) -> None:
        if rules := self._rules.of(bridge):
            self._rules.change(bridge, add=(), take=frozenset[str]().union(*rules.values()))

    def _remove_unused_bridges(self, kernel: Netlink, give_up_at: float) -> None:
        """Remove our bridges that have no taps. Looks again under each one's lock."""
        for name in self._unused_bridges(kernel):
            with self._bridge_lock(name, give_up_at):
                if bridge := self._unused_bridges(kernel).get(name):
                    self._drop_rules(name)
                    kernel.delete(bridge.index)

    def _unused_bridges(self, kernel: Netlink) -> dict[str, Link]:
        links, prefix = list(kernel.links()), f"{self._prefix}network="
        used = {link.master for link in links}
        return {link.name: link for link in links if link.alias.startswith(prefix) and link.index not in used}


class _Bridge(NamedTuple):
    """A bridge as it is found; `link` None: it is not there. `shared` is all that is no VM's own."""

    link: Link | None = None
    shared: Parts = frozenset()
    rules: ByTap = MappingProxyType({})
    rules_seen: bool = True


def _drift(interface: Interface, tap: Link, bridge: _Bridge, unwanted: Parts) -> Iterator[Drift]:
    """Where an interface's bridge and tap are other than they are to be."""
    path, wants = f"network_interfaces.{interface.name}", interface.wants
    missing = wants - bridge.shared - bridge.rules.get(interface.tap, frozenset())
    odd_mtu = f"its tap has an MTU of {tap.mtu}" if interface.mtu not in {None, tap.mtu} else ""
    if actual := _trouble(tap, bridge, missing | unwanted) or odd_mtu:
        yield Drift(path=f"{path}.bridge", recorded=next(filter(_is_address, wants)), actual=actual)
    lacks, has_too_many = ({*map(field_of, _rules_in(parts))} for parts in (missing, unwanted))
    for field in sorted(lacks | has_too_many):
        recorded = any(field_of(rule) == field for rule in _rules_in(wants))
        seen = False if field in lacks else "other rules" if recorded else True
        yield Drift(path=f"{path}.{field}", recorded=recorded, actual=seen if bridge.rules_seen else "unknown")


def _trouble(tap: Link, bridge: _Bridge, wrong: Parts) -> str:
    """What is wrong with the devices, "" if nothing is. `wrong`: parts that the bridge lacks or has too many."""
    if bridge.link is None:
        return "gone"
    if not bridge.link.up:
        return "down"
    if not (tap.up and tap.master == bridge.link.index):
        return "without its tap"
    if not any(map(_is_address, wrong)):
        return ""
    return " ".join(sorted(filter(_is_address, bridge.shared))) or "without an address"


def _is_address(part: str) -> bool:
    return " " not in part


def _rules_in(parts: Parts) -> Parts:
    return frozenset(part for part in parts if not _is_address(part))


def _refuse_used_ports(rules: Iterable[str]) -> None:
    """Raises PermanentError if a program of the host listens on a port that is to lead to a guest."""
    for protocol, port in (rule.split()[2:5:2] for rule in rules if rule.startswith("ip publish ")):
        is_tcp = protocol == "tcp"
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, is_tcp)  # connections that are closed do not count
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                message = f"port {port}/{protocol} of this host, which it publishes, is in use by another program"
                raise PermanentError(message) from error


def _device(kernel: Netlink, kind: str, name: str, alias: str, make: Callable[[str], None]) -> Link:
    """The device, made if it is not there. One without an alias is ours: its maker was killed before it had one."""
    found = kernel.link(name)
    if found is None:
        make(name)
        found = kernel.link(name)
    elif found.alias not in {"", alias}:
        raise _taken(f"{kind} {name}", found)
    if found is None:
        raise TemporaryError(f"{kind} {name} vanished as soon as it was made")
    return found


def _taken(what: str, found: Link) -> PermanentError:
    return PermanentError(f"{what} is somebody else's (alias {found.alias!r}): remove it, or rename what it belongs to")


def mac_of(record: VMRecord, name: str) -> str:
    """A locally administered address that follows from project, VM and interface: it is the same on any host."""
    return "06:" + ":".join(f"{byte:02x}" for byte in bytes.fromhex(_hash(f"{record.project} {record.home} {name}", 5)))


def _hash(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size).hexdigest()
