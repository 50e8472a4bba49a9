"""Links of VMs on this host: a bridge for each network, a tap device for each interface, NAT where a network wants it.

Names follow from hashes, because Linux takes 15 characters; the alias of a device says whose it is, and one that is
not ours is never touched. What is there is found by its alias, so whatever a killed worker left is swept up.

A bridge has parts: addresses such as "10.0.0.1/24", and lines of its table (`rules.py`). It is to have those that the
records of VMs which are to be up want, and no others: while a network changes, both the old and the new.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from hashlib import blake2b
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.devices import NetworkInterface
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.lifecycle import WANTS_VMM
from mikrom_reconcile.core.model.observed import Drift
from mikrom_reconcile.host.ports import LinkLook, VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.nat import PREFIX, Rules, nat_of
from mikrom_reconcile.limits import NETWORKS
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.netlink import Link, Netlink

_STEP = "making its links"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFREQ = struct.Struct("16sH22x")
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, as Firecracker and QEMU open it

Parts = frozenset[str]
"""What a bridge has or is to have. An address has no space in it, a rule has."""


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a VM as its VMM opens it. `bandwidth_mbit` None: no limit."""

    name: str
    tap: str
    mac: str
    bandwidth_mbit: int | None


class Networks:
    """The links of one state folder, in the network namespace of this process."""

    def __init__(self, state_dir: Path) -> None:
        self._locks = state_dir / "locks"
        self._owner = _hash(str(state_dir), 4)
        self._records = Records(state_dir)
        self._rules = Rules()

    def of(self, record: VMRecord) -> tuple[Interface, ...]:
        """The VM's interfaces in the order in which its guest sees them, whether their taps are there or not."""
        return tuple(
            Interface(
                name=name,
                tap=f"mk{_hash(f'{self._owner} {record.vm} {name}', 6)}",
                mac=mac_of(record, name),
                bandwidth_mbit=nic.rate_limiter.bandwidth_mbit,
            )
            for name, nic in sorted(record.spec.network_interfaces.items())
        )

    def prepare(self, record: VMRecord, *, give_up_at: float, only_mend: bool = False) -> None:
        """Make what is missing, and take away what nobody wants any more. Raises PermanentError when somebody else has
        a name, TemporaryError, OSError.

        With `only_mend` a tap that is gone stays so: the VMM that runs has lost it, and would not get a new one.
        """
        if not record.spec.network_interfaces:
            return
        with Netlink() as kernel:
            for interface in self.of(record):
                if only_mend and kernel.link(interface.tap) is None:
                    continue
                nic = record.spec.network_interfaces[interface.name]
                with self._bridge_lock(record.vm, self.bridge_name(record, nic.network), give_up_at):
                    bridge = self._bridge(kernel, record, nic)
                    left = self._tap(kernel, record, interface, bridge)
                if left:
                    self._drop_bridges(record.vm, list(kernel.links()), give_up_at)

    def in_place(self, record: VMRecord) -> frozenset[str]:
        """The interfaces whose taps are there and ours. Raises OSError."""
        if not record.spec.network_interfaces:
            return frozenset()
        with Netlink() as kernel:
            return frozenset(
                interface.name
                for interface in self.of(record)
                if (tap := kernel.link(interface.tap)) and tap.alias == self._alias(record, interface)
            )

    def look(self, but: str = "") -> LinkLook:
        """One look at all bridges; what the record of the VM `but` says of it counts for nothing."""
        return _Look(self, but).drift_of

    def remove(self, record: VMRecord, *, give_up_at: float) -> None:
        """Remove the VM's taps, those of earlier specs too, and bridges that nobody uses any more."""
        if self._made_any():
            prefix = f"{self._prefix}vm={record.vm}:"
            self._remove_taps(record.vm, lambda link: link.alias.startswith(prefix), give_up_at)
        for name, _ in self.wants(record):
            with self._bridge_lock(record.vm, name, give_up_at), Netlink() as kernel:
                if (bridge := kernel.link(name)) and bridge.alias.startswith(self._prefix):
                    self._furnish(kernel, record.vm, bridge, frozenset())

    def sweep(self, *, give_up_at: float) -> tuple[str, ...]:
        """Remove taps of ours that no record wants; the names of their VMs. Raises MikromError, OSError."""
        return self._remove_taps("", self._is_left, give_up_at) if self._made_any() else ()

    def _is_left(self, link: Link) -> bool:
        """Whether a tap is one of ours that no record wants: a VM is recorded before its taps are made."""
        vm = self._vm_of(link)
        found = self._records.read(vm) if vm else None
        wanted = not isinstance(found, VMRecord) or link.alias in {self._alias(found, nic) for nic in self.of(found)}
        return bool(vm) and (found is None or not wanted)

    def _remove_taps(self, vm: str, which: Callable[[Link], bool], give_up_at: float) -> tuple[str, ...]:
        """Remove taps, and bridges that have none any more; whose taps those were."""
        with Netlink() as kernel:
            links = list(kernel.links())
            taps = [link for link in links if which(link)]
            for tap in taps:
                kernel.delete(tap.index)
        if taps:
            self._drop_bridges(vm, [link for link in links if link not in taps], give_up_at)
        return tuple(self._vm_of(tap) for tap in taps)

    def _vm_of(self, link: Link) -> str:
        """Whose tap it is, "" if it is none of ours."""
        prefix = f"{self._prefix}vm="
        return link.alias.removeprefix(prefix).partition(":")[0] if link.alias.startswith(prefix) else ""

    @property
    def _prefix(self) -> str:
        return f"mikrom:{self._owner}:"

    def _alias(self, record: VMRecord, interface: Interface) -> str:
        return f"{self._prefix}vm={record.vm}:nic={interface.name}"

    def bridge_name(self, record: VMRecord, network: str) -> str:
        """The name of the bridge of a network."""
        return f"{PREFIX}{_hash(f'{self._owner} {record.project} {network}', 6)}"

    def _made_any(self) -> bool:
        """Whether this host ever made a bridge: if not, nobody has to look through all its devices."""
        return any(self._locks.glob("bridge-*.lock"))

    @contextmanager
    def _bridge_lock(self, vm: str, bridge: str, give_up_at: float) -> Iterator[None]:
        """Nobody else makes or drops the bridge meanwhile."""
        path = self._locks / f"bridge-{bridge}.lock"
        while (lock := locks.open_taken(path)) is None:
            if time.monotonic() > give_up_at:
                raise TemporaryError(f"another process still works on bridge {bridge}", vm=vm, step=_STEP)
            time.sleep(NETWORKS.lock_poll_s)
        try:
            yield
        finally:
            locks.give_back(lock)

    def _bridge(self, kernel: Netlink, record: VMRecord, nic: NetworkInterface) -> Link:
        name, alias = self.bridge_name(record, nic.network), f"{self._prefix}network={record.project}/{nic.network}"
        found, own = kernel.link(name), self.own(record, name)
        beside = {link.name: link for link in kernel.in_subnets_of(filter(_is_address, own))}
        for link in beside.values():
            if name not in beside and not link.alias.startswith(self._prefix):
                raise self._taken(record, f"the subnet of network {nic.network}, with device {link.name},", link)
        if found is None:
            kernel.add_bridge(name)
            found = kernel.link(name)
        elif found.alias not in {"", alias}:  # one without an alias is ours: its maker was killed before it had one
            raise self._taken(record, f"bridge {name}", found)
        if found is None:
            raise TemporaryError(f"bridge {name} vanished as soon as it was made", vm=record.vm, step=_STEP)
        self._furnish(kernel, record.vm, found, own)
        if not found.up or found.alias != alias:
            kernel.set_up(found.index, alias=alias)
        return found

    def parts_of(self, kernel: Netlink, bridge: str, index: int) -> tuple[Parts, bool]:
        """What the bridge has, and whether its rules can be seen."""
        rules = self._rules.of(bridge)
        return kernel.addresses().get(index, frozenset()) | (rules or frozenset()), rules is not None

    def wanted(self, *, but: str) -> Iterator[tuple[str, Parts]]:
        """What running VMs `but` one want of which bridge, the VMs after that one first: while all of a fleet change,
        those still want what it has left. Raises _UnknownError for a record that cannot be read.
        """
        names = self._records.names()
        for name in (*(name for name in names if name > but), *(name for name in names if name < but)):
            found = self._records.read(name)
            if found is not None and not isinstance(found, VMRecord):
                raise _UnknownError
            if found is not None and found.state in WANTS_VMM:
                yield from self.wants(found)

    def wants(self, record: VMRecord) -> Iterator[tuple[str, Parts]]:
        """What one VM wants of which bridge."""
        for nic in record.spec.network_interfaces.values():
            name = self.bridge_name(record, nic.network)
            yield name, _parts(nic, name)

    def own(self, record: VMRecord, bridge: str) -> Parts:
        """What one VM wants of a bridge."""
        return frozenset[str]().union(*(parts for name, parts in self.wants(record) if name == bridge))

    def _furnish(self, kernel: Netlink, vm: str, bridge: Link, own: Parts) -> None:
        """Give a bridge what the VM wants of it, and leave it what others want."""
        name, index = bridge.name, bridge.index
        there, _ = self.parts_of(kernel, name, index)
        unwanted = self._unwanted(there - own, name, vm)
        wanted = own | (there - unwanted)
        if wanted == there:
            return
        for address in filter(_is_address, unwanted):
            kernel.remove_address(index, address)
        for address in filter(_is_address, wanted):  # Linux removes others of a subnet along with its first
            kernel.add_address(index, address)
        if not all(map(_is_address, wanted ^ there)):
            self._rules.replace(vm, name, frozenset(part for part in wanted if not _is_address(part)))

    def _unwanted(self, parts: Parts, bridge: str, vm: str) -> Parts:
        """Those of the parts that no other VM wants; none while a record cannot be read."""
        if parts:
            try:
                for name, wanted in self.wanted(but=vm):
                    parts = parts - wanted if name == bridge else parts
                    if not parts:
                        break
            except _UnknownError:
                return frozenset()
        return parts

    def _drop_bridges(self, vm: str, links: list[Link], give_up_at: float) -> None:
        """Remove our bridges that seem to be nobody's among the links, and are."""
        used, prefix = {link.master for link in links}, f"{self._prefix}network="
        for name in [link.name for link in links if link.alias.startswith(prefix) and link.index not in used]:
            with self._bridge_lock(vm, name, give_up_at), Netlink() as kernel:
                bridge = kernel.link(name)
                if bridge is not None and not any(link.master == bridge.index for link in kernel.links()):
                    if self._rules.of(name):
                        self._rules.replace(vm, name, ())
                    kernel.delete(bridge.index)

    def _tap(self, kernel: Netlink, record: VMRecord, interface: Interface, bridge: Link) -> bool:
        """Make the tap and put it on the bridge; whether it was on another one."""
        alias = self._alias(record, interface)
        found = kernel.link(interface.tap)
        if found is not None and found.alias not in {"", alias}:
            raise self._taken(record, f"tap {interface.tap}", found)
        if found is None:
            _make_tap(interface.tap)
            found = kernel.link(interface.tap)
        if found is None:
            raise TemporaryError(f"tap {interface.tap} vanished as soon as it was made", vm=record.vm, step=_STEP)
        kernel.set_up(found.index, alias=alias, master=bridge.index)
        return found.master not in {0, bridge.index}

    def _taken(self, record: VMRecord, what: str, found: Link) -> PermanentError:
        message = f"{what} is somebody else's (alias {found.alias!r}): remove it, or rename what it belongs to"
        return PermanentError(message, vm=record.vm, step=_STEP)


class _Look:
    """What is asked only once, however many VMs are looked at."""

    def __init__(self, networks: Networks, but: str) -> None:
        self._networks = networks
        self._but = but
        self.bridge = cache(self._bridge)

    def drift_of(self, record: VMRecord) -> tuple[Drift, ...]:
        """Where the VM's bridges and taps are other than they are to be. Raises OSError."""
        with Netlink() as kernel:
            return tuple(
                drift
                for interface in self._networks.of(record)
                if (tap := kernel.link(interface.tap))  # one that is gone is the VMM's loss, and told by its driver
                for drift in self._of_interface(record, interface.name, tap)
            )

    def _of_interface(self, record: VMRecord, name: str, tap: Link) -> Iterator[Drift]:
        nic = record.spec.network_interfaces[name]
        bridge = self._networks.bridge_name(record, nic.network)
        link, there, rules_seen = self.bridge(bridge)
        own, path = _parts(nic, bridge), f"network_interfaces.{name}"
        lacking, more = own - there, there - self._networks.own(record, bridge)
        if more:
            more = frozenset() if self._wanted is None else more - self._wanted.get(bridge, frozenset())
        recorded = next(filter(_is_address, own))
        if actual := _trouble(tap, link) or _addresses(lacking, more, there):
            yield Drift(path=f"{path}.bridge", recorded=recorded, actual=actual)
        if rules_seen and not all(map(_is_address, lacking)):
            yield Drift(path=f"{path}.nat", recorded=True, actual=False)
        elif not all(map(_is_address, more)):
            yield Drift(path=f"{path}.nat", recorded=nic.nat, actual="other rules" if nic.nat else True)

    def _bridge(self, name: str) -> tuple[Link | None, Parts, bool]:
        with Netlink() as kernel:
            link = kernel.link(name)
            return (link, *self._networks.parts_of(kernel, name, link.index)) if link else (None, frozenset(), True)

    @cached_property
    def _wanted(self) -> dict[str, Parts] | None:
        """What all running VMs want; None while a record cannot be read."""
        wanted: dict[str, Parts] = defaultdict(frozenset)
        try:
            for bridge, parts in self._networks.wanted(but=self._but):
                wanted[bridge] |= parts
        except _UnknownError:
            return None
        return wanted


class _UnknownError(Exception):
    """A record cannot be read: its VM may want anything."""


def _parts(nic: NetworkInterface, bridge: str) -> Parts:
    """What an interface wants of its bridge."""
    address = f"{nic.gateway}/{IPv4Network(nic.cidr).prefixlen}"
    return frozenset({address}) | (nat_of(bridge, nic.cidr) if nic.nat else frozenset())


def _is_address(part: str) -> bool:
    return " " not in part


def _trouble(tap: Link, bridge: Link | None) -> str:
    """What is wrong with the devices, "" if nothing is."""
    if bridge is None:
        return "gone"
    if not bridge.up:
        return "down"
    return "" if tap.up and tap.master == bridge.index else "without its tap"


def _addresses(lacking: Parts, more: Parts, there: Parts) -> str:
    """The addresses that a bridge has instead, "" if they are as they should be."""
    if not any(map(_is_address, (*lacking, *more))):
        return ""
    return " ".join(sorted(filter(_is_address, there))) or "without an address"


def mac_of(record: VMRecord, name: str) -> str:
    """A locally administered address that follows from project, VM and interface: it is the same on any host."""
    return "06:" + ":".join(f"{byte:02x}" for byte in bytes.fromhex(_hash(f"{record.project} {record.vm} {name}", 5)))


def boot_args_of(record: VMRecord) -> str:
    """The kernel's command line, with the address of the first interface for guests that have no other way to it."""
    spec = record.spec
    name = min(spec.network_interfaces, default=None)
    ip = record.addresses.get(name) if name else None
    if name is None or ip is None or " ip=" in f" {spec.boot_args}":
        return spec.boot_args
    nic = spec.network_interfaces[name]
    said = f"ip={ip}::{nic.gateway}:{IPv4Network(nic.cidr).netmask}:{record.vm}:eth0:off"
    return f"{spec.boot_args} {said}".lstrip()


def _make_tap(name: str) -> None:
    with _attached(name) as tap:
        fcntl.ioctl(tap, _TUNSETPERSIST, 1)


def own_tap(name: str, uid: int) -> None:
    """Let the user `uid` open a tap that is there and that nobody has open. Raises OSError."""
    with _attached(name) as tap:
        fcntl.ioctl(tap, _TUNSETOWNER, uid)


@contextmanager
def _attached(name: str) -> Iterator[int]:
    """A descriptor of the tap, which is made if it is not there."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _TAP_FLAGS))
        yield fd
    finally:
        os.close(fd)


def _hash(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size).hexdigest()
