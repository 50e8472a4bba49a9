"""Which host each VM belongs on. An existing VM stays where it is, while that is allowed; a new one goes where the
fewest are, among the hosts that have room for it and that its fleet prefers. The same input gives the same hosts.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from mikrom_reconcile.core.model.observed import Capacity
from mikrom_reconcile.core.model.plan import group_by
from mikrom_reconcile.core.placement.capacity import Heaps, HostHeap, HostLoads, Paths, Room, SpreadCounts, SpreadHeap
from mikrom_reconcile.core.specs.inventory import Attributes, describe_attribute
from mikrom_reconcile.core.specs.load import FleetSpec, Specs, UnplacedVM, hosts_of
from mikrom_reconcile.times_and_sizes import SPECS

NOTHING: Mapping[str, Any] = MappingProxyType({})


Need = tuple[Capacity, frozenset[str]]  # what a VM takes of a host: room, and ports that it publishes there


class Placing(msgspec.Struct, frozen=True, kw_only=True):
    """A host for each VM in order ("" for none), why VMs may not stay where they are, and why no host can have them."""

    hosts: list[str]
    eviction_reasons: dict[str, str] = {}
    rejections: dict[str, tuple[str, ...]] = {}


class Scheduler:
    """The hosts of a run: who may be there, who is, what room is left. Each choice takes its room. `located` has where
    VMs are, `previous_hosts` where they were last known to be, `rooms` the room on hosts that answered, `pinned` why
    VMs cannot leave at all, `unreachable` why hosts gave no report. `here` is the host of specs without an Inventory.
    """

    def __init__(
        self,
        specs: Specs,
        here: str,
        *,
        located: Mapping[str, str],
        unreachable: Mapping[str, str] = NOTHING,
        previous_hosts: Mapping[str, str] = NOTHING,
        rooms: Mapping[str, Room] = NOTHING,
        pinned: Mapping[str, str] = NOTHING,
    ) -> None:
        self.hosts = hosts_of(specs, here)
        self._attributes = Attributes(specs.inventory, specs.extra_vars)
        self._states = {host: entry.state for host, entry in specs.inventory.hosts.items() if entry.state != "active"}
        self._unreachable = unreachable
        self._located = located
        self._previous_hosts = previous_hosts
        self._pinned = pinned
        self._rooms = {host: rooms.get(host, Room()) for host in self.hosts}
        self._loads = HostLoads(Counter(located.values()), self._rooms)
        self._kinds: dict[int, bytes] = {}  # by the identity of a fleet, which the specs hold
        self._eligible: dict[tuple[int, bytes], frozenset[str]] = {}
        self._paths: dict[tuple[int, bytes], Paths] = {}
        self._heaps: dict[tuple[int, bytes, Need], Heaps] = {}
        self._spread_heaps: dict[tuple[int, int, Need], SpreadHeap] = {}
        self._counts: dict[int, SpreadCounts] = {}
        self._members: dict[int, list[str]] = defaultdict(list)  # the hosts of the VMs of fleets that are to be spread

    def place(self, vms: Sequence[UnplacedVM], need: Callable[[UnplacedVM], Capacity]) -> Placing:
        """A host for each. Those that are nowhere choose before those that have to move: they are down."""
        placing = Placing(hosts=[self._located.get(vm.name, "") for vm in vms])
        must_move = [number for number, vm in enumerate(vms) if not self._stays(vm, placing.hosts[number])]
        for vm, host in zip(vms, placing.hosts, strict=True) if must_move else ():
            if vm.fleet.placement.spread:
                self._members[id(vm.fleet)].append(host)
        unplaceable: list[UnplacedVM] = []
        for number in sorted(must_move, key=lambda number: bool(placing.hosts[number])):
            vm, host = vms[number], placing.hosts[number]
            if host:
                placing.eviction_reasons[vm.name] = self._why_not(vm, host)
            if pin := self._pinned.get(vm.name):
                placing.rejections[vm.name] = (f"{host}: {placing.eviction_reasons[vm.name]}", pin)
                continue
            chosen = self._choose(vm, (need(vm), vm.template.published))
            self.claims_ports(vm, chosen)
            placing.hosts[number] = chosen or host or self._only_unreachable(vm)
            if not chosen:
                unplaceable.append(vm)
        alike: dict[tuple[int, int, Capacity], tuple[str, ...]] = {}
        for vm in unplaceable:  # once all have chosen: only then is it known how full the hosts are
            key = (id(vm.hosts), id(vm.template) if vm.template.published else id(vm.fleet), need(vm))
            placing.rejections[vm.name] = alike[key] = alike.get(key) or self._rejections(vm, need(vm))
        return placing

    def _stays(self, vm: UnplacedVM, host: str) -> bool:
        """One on an unreachable host stays there: nobody knows more. So does one on a host that left the inventory."""
        may_stay = host in self.eligible_hosts(vm) or host in self._unreachable or host not in self._rooms
        return bool(host) and may_stay and self.claims_ports(vm, host)

    def claims_ports(self, vm: UnplacedVM, host: str) -> bool:
        """Whether no other VM publishes one of its ports on the host; then they are its from now on."""
        is_free = not self._taken_port(vm, host)
        if is_free:
            self._loads.publishers |= {(host, port): vm.name for port in vm.template.published}
        return is_free

    def _taken_port(self, vm: UnplacedVM, host: str) -> str:
        """A port that another VM publishes there; "" if all that it wants to publish are free."""
        ports = vm.template.published
        return next((port for port in ports if self._loads.publishers.get((host, port), vm.name) != vm.name), "")

    def eligible_hosts(self, vm: UnplacedVM) -> frozenset[str]:
        """The hosts that may have the VM and keep it, whether or not they take new ones."""
        return self._eligible_in(vm.hosts, vm.fleet)

    def _eligible_in(self, hosts: tuple[str, ...] | None, fleet: FleetSpec) -> frozenset[str]:
        key = (id(hosts), self._kind(fleet))
        if (found := self._eligible.get(key)) is None:
            allowed = self.hosts if hosts is None else hosts
            found = self._eligible[key] = frozenset(host for host in allowed if not self._unfit(fleet, host))
        return found

    def _kind(self, fleet: FleetSpec) -> bytes:
        """The fleet's placement as a key: thousands of fleets have the same, and hashing a struct is slow."""
        if (kind := self._kinds.get(id(fleet))) is None:
            kind = self._kinds[id(fleet)] = msgspec.json.encode(fleet.placement)
        return kind

    def _choose(self, vm: UnplacedVM, need: Need) -> str:
        """A host; "" if none can take it. It goes back to where it was, if it can."""
        counts = self._counts_of(vm.fleet)
        host = self._previous_hosts.get(vm.name, "")
        if not (self._takes(vm, host) and self._loads.fits(host, *need)):
            host = self._heap_of(vm, need, counts).best() or ""
        if host:
            self._loads.add(host, need[0])
            if counts:
                counts.add(host)
        return host

    def _takes(self, vm: UnplacedVM, host: str) -> bool:
        return host in self.eligible_hosts(vm) and host not in self._unreachable and host not in self._states

    def _heap_of(self, vm: UnplacedVM, need: Need, counts: SpreadCounts | None) -> HostHeap | SpreadHeap:
        key = (id(vm.hosts), self._kind(vm.fleet), need)
        if (found := self._heaps.get(key)) is None:
            takers = (host for host in self.eligible_hosts(vm) if self._takes(vm, host))
            weights = {host: self._attributes.weight(host, vm.fleet.placement) for host in takers}
            found = self._heaps[key] = self._paths_of(vm.fleet).heaps(
                weights, lambda host: self._loads.fits(host, *need), self._loads
            )
        if isinstance(found, HostHeap) or counts is None:
            assert isinstance(found, HostHeap), "only what is to be spread has heaps by value"  # noqa: S101
            return found
        of_fleet = (id(vm.hosts), id(vm.fleet), need)
        if of_fleet not in self._spread_heaps:
            self._spread_heaps[of_fleet] = SpreadHeap(found, counts)
        return self._spread_heaps[of_fleet]

    def _counts_of(self, fleet: FleetSpec) -> SpreadCounts | None:
        spread = fleet.placement.spread
        if spread and id(fleet) not in self._counts:
            skews = tuple(each.max_skew for each in spread)
            self._counts[id(fleet)] = SpreadCounts(self._paths_of(fleet), skews, self._members[id(fleet)])
        return self._counts.get(id(fleet))

    def _paths_of(self, fleet: FleetSpec) -> Paths:
        key = (id(fleet.hosts), self._kind(fleet))
        if key not in self._paths:
            hosts, spread = self._eligible_in(fleet.hosts, fleet), fleet.placement.spread
            said = self._attributes.value
            values = {it: tuple(describe_attribute(said(it, each.attribute)) for each in spread) for it in hosts}
            self._paths[key] = Paths(values)
        return self._paths[key]

    def _unfit(self, fleet: FleetSpec, host: str) -> str:
        """Why the host may not keep VMs of the fleet, though its pattern allows it; "" if it may."""
        if self._states.get(host) == "drain":
            return "state: drain"
        return self._attributes.first_violation(host, fleet.placement)

    def _why_not(self, vm: UnplacedVM, host: str) -> str:
        """Why the host may not have the VM; "" if only its room can be in the way."""
        if vm.hosts is not None and host not in vm.hosts:
            return f"not in hosts: {vm.hosts[0] if len(vm.hosts) == 1 else vm.fleet.pattern}"
        if unfit := self._unfit(vm.fleet, host):
            return unfit
        if host in self._unreachable:
            return f"could not be read: {self._unreachable[host]}"
        if port := self._taken_port(vm, host):
            return f"port {port} is published by another VM"
        return f"state: {self._states[host]}" if host in self._states else ""

    def _only_unreachable(self, vm: UnplacedVM) -> str:
        """An unreachable host, if only those might have taken the VM: it is reported with that host. "" otherwise."""
        likely = self.eligible_hosts(vm) - self._states.keys()
        return "" if likely - self._unreachable.keys() else min(likely, default="")

    def _rejections(self, vm: UnplacedVM, need: Capacity) -> tuple[str, ...]:
        """Why none of the hosts can have the VM, those that are alike in one line."""
        alike = group_by(self.hosts, lambda host: self._why_not(vm, host))
        full = sorted(alike.pop("", []), key=lambda host: (-self._loads.mem_mib[host], host))
        lines = [f"{host}: {self._lack(host, need)}" for host in full[: SPECS.named_hosts]]
        if len(full) > SPECS.named_hosts:
            lines.append(f"{len(full) - SPECS.named_hosts} more hosts have no room either")
        return (*lines, *(f"{named(hosts, SPECS.named_hosts)}: {why}" for why, hosts in alike.items()))

    def _lack(self, host: str, need: Capacity) -> str:
        loads, room = self._loads, self._rooms[host]
        mem_need_mib = loads.mem_need_mib(host, need)
        if loads.mem_mib[host] < mem_need_mib:
            left, limit, needs, what = loads.mem_mib[host], room.mem_limit_mib, mem_need_mib, "MiB"
        else:
            left, limit, needs, what = loads.vcpus[host], room.vcpu_limit, need.vcpu_count, "vCPUs"
        return f"{needs} {what} needed, {max(0, left):.0f} of {limit:.0f} left"


def named(texts: Iterable[str], most: int, between: str = ", ") -> str:
    """The first few of many."""
    every = list(texts)
    return between.join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
