"""Who has which address: leases go to a VM, and stay with it as long as it exists. Control only proposes: an address
is held while any record has it, seen or remembered on an unreachable host, and for its pool's cooldown after that.
"""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from itertools import chain

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.plan import Refusal
from mikrom_reconcile.core.placement.desired_state import pool_text, static_addresses
from mikrom_reconcile.core.planning.context import Draft, PlanContext, ProjectView, with_kind
from mikrom_reconcile.core.specs.networks import WHOLE, Network

_NEEDS_ONE = frozenset({"create", "start", "restart", "replace", "resume", "pause", "suspend", "stop", "update"})
"""Kinds of changes after which the VM's record names its addresses."""


def lease(draft: Draft, context: PlanContext) -> Draft:
    """Gives each interface an address; changes for which there is none are refused, or wait where it is freed now."""
    if not (context.given.specs.networks and draft.changes):
        return draft
    allocator = _AddressAllocator(draft, context)
    own = context.view.own
    going = {it.name for it in draft.changes if it.kind == "delete" and it.observed is own[it.name][0]}
    changes, refusals = [], []
    for change in draft.changes:
        vm = change.desired
        if vm is None or change.kind not in _NEEDS_ONE or not vm.spec.network_interfaces:
            changes.append(change)
            continue
        try:
            changes.append(replace(change, desired=replace(vm, addresses=allocator.addresses_of(vm))))
        except _NoAddressError as error:
            message, holder = error.args
            changes.append(with_kind(change, "wait" if holder in going else "blocked", message))
            if holder not in going:
                refusals.append(Refusal(fleet=change.fleet, vm=change.name, rule="addresses", message=message))
    return replace(draft, changes=changes, refusals=(*draft.refusals, *refusals))


def held_addresses(draft: Draft, context: PlanContext) -> dict[str, dict[str, str]]:
    """The addresses that VMs have: as seen, as proven, and as last leased where their records cannot be read."""
    view, remembered = context.view, context.given.placements
    names = (it for it in remembered.addresses if remembered.vms.get(it) in view.unreachable or it in view.others)
    unseen = {name: remembered.addresses[name] for name in names}
    proven = {vm.name: vm.addresses for vm in draft.desired if vm.addresses and vm.name in view.up_to_date}
    return unseen | proven | seen_addresses(view)


def seen_addresses(view: ProjectView) -> dict[str, dict[str, str]]:
    """The addresses in the rows of VMs."""
    return {name: rows[0].addresses for name, rows in view.own.items() if rows[0].addresses}


class _NoAddressError(Exception):
    """A VM cannot have an address now: a message, and who has the address, "" if none is free."""


class _AddressAllocator:
    def __init__(self, draft: Draft, context: PlanContext) -> None:
        view, vms = context.view, draft.desired
        self._networks: Mapping[str, Network] = context.given.specs.networks
        self._released = view.released  # seconds ago
        self._by_vm = held_addresses(draft, context)
        duplicates = (ip for rows in view.own.values() for row in rows[1:] for ip in row.addresses.values())
        static = (ip for vm in vms if vm.spec.network_interfaces for ip in static_addresses(vm.spec).values())
        self._owners = dict.fromkeys((*duplicates, *static), "") | {
            ip: name for name, addresses in self._by_vm.items() for ip in addresses.values()
        }
        self._free: dict[tuple[str, str], Iterator[int]] = {}
        self._exhausted: dict[tuple[str, str], str] = {}

    def addresses_of(self, vm: DesiredVM) -> dict[str, str]:
        """Static addresses, leases that the VM has or is known to have had, and new ones."""
        static = static_addresses(vm.spec)
        own = self._by_vm.get(vm.name, {}).values()
        for ip in static.values():
            if (holder := self._owners.get(ip) or vm.name) != vm.name and ip not in own:
                raise _NoAddressError(f"{ip} is leased by {holder}: write another, or let {holder} go first", holder)
        addresses = {name: ip for name, ip in vm.addresses.items() if self._owners.get(ip, vm.name) == vm.name} | static
        for name, nic in sorted(vm.spec.network_interfaces.items()):
            if name not in addresses:
                addresses[name] = self._next(nic.network, nic.pool or WHOLE)
        self._owners |= dict.fromkeys(addresses.values(), vm.name)
        return addresses

    def _next(self, name: str, pool: str) -> str:
        if not (network := self._networks.get(name)) or pool not in network.pools:
            raise _NoAddressError(f"the specs have no {pool_text(name, pool)} any more", "")
        cooldown_s = network.pools[pool].cooldown_s
        candidates = self._free.setdefault((name, pool), chain.from_iterable(network.free(pool)))
        for ip in (str(IPv4Address(address)) for address in candidates):
            if ip not in self._owners and self._released.get(ip, cooldown_s) >= cooldown_s:
                return ip
        if (name, pool) not in self._exhausted:
            self._exhausted[name, pool] = self._why_exhausted(network, pool, cooldown_s)
        raise _NoAddressError(self._exhausted[name, pool], "")

    def _why_exhausted(self, network: Network, pool: str, cooldown_s: float) -> str:
        """In numbers; to count takes as long as the pool is large, so it is done once."""
        every = [str(IPv4Address(address)) for free in network.free(pool) for address in free]
        cooling = sum(ip not in self._owners for ip in every)
        more = f", and {cooling} are not used again until {cooldown_s:g} s after their VM went" if cooling else ""
        held = f"{len(every) - cooling} of {len(every)} in {pool_text(network.name, pool)} are held"
        return f"no address is free: {held}{more}"
