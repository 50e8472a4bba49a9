"""Links of VMs on this host: a bridge for each network, a tap device for each interface, NAT where a network wants it.

Names follow from hashes, because Linux takes 15 characters; the alias of a device says whose it is, and one that is
not ours is never touched. What is there is found by its alias, so whatever a killed worker left is swept up.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import msgspec

from mikrom_reconcile import locks
from mikrom_reconcile.core.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.devices import NetworkInterface
from mikrom_reconcile.host.netlink import Link, Netlink
from mikrom_reconcile.host.ports import VMRecord

_STEP = "making its links"
_WAIT_S = 0.005
_NFT, _NFT_S = "nft", 10.0
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFREQ = struct.Struct("16sH22x")
_TAP_FLAGS = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, as Firecracker and QEMU open it
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


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

    def prepare(self, record: VMRecord, *, give_up_at: float) -> None:
        """Make what is missing. Raises PermanentError when somebody else has a name, TemporaryError, OSError."""
        if not record.spec.network_interfaces:
            return
        with Netlink() as kernel:
            for interface in self.of(record):
                nic = record.spec.network_interfaces[interface.name]
                with self._bridge_lock(record.vm, self._bridge_name(record, nic.network), give_up_at):
                    bridge = self._bridge(kernel, record, nic)
                    self._tap(kernel, record, interface, bridge)

    def in_place(self, record: VMRecord) -> frozenset[str]:
        """The interfaces whose taps are there, ours, up and on their bridge. Raises OSError."""
        if not record.spec.network_interfaces:
            return frozenset()
        with Netlink() as kernel:
            bridges: dict[str, Link | None] = {}
            good = set()
            for interface in self.of(record):
                network = record.spec.network_interfaces[interface.name].network
                name = self._bridge_name(record, network)
                bridge = bridges[name] if name in bridges else bridges.setdefault(name, kernel.link(name))
                tap = kernel.link(interface.tap)
                if (
                    tap
                    and bridge
                    and tap.up
                    and tap.master == bridge.index
                    and tap.alias == self._alias(record, interface)
                ):
                    good.add(interface.name)
            return frozenset(good)

    def remove(self, record: VMRecord, *, give_up_at: float) -> None:
        """Remove the VM's taps, those of earlier specs too, and bridges that nobody uses any more."""
        with Netlink() as kernel:
            prefix = f"{self._prefix}vm={record.vm}:"
            taps = [link for link in kernel.links() if link.alias.startswith(prefix)] if self._made_any() else []
            for tap in taps:
                kernel.delete(tap.index)
            bridges = (
                [link.name for link in kernel.links() if link.alias.startswith(f"{self._prefix}network=")]
                if taps
                else []
            )
        for name in bridges:
            with self._bridge_lock(record.vm, name, give_up_at), Netlink() as kernel:
                _drop_if_unused(kernel, record.vm, name)

    def sweep(self, names: Callable[[], Container[str]]) -> tuple[str, ...]:
        """Remove taps of ours whose VM has no record; the names of those VMs. Raises OSError.

        `names` are asked for after the taps: a VM is recorded before its taps are made.
        """
        if not self._made_any():
            return ()
        prefix = f"{self._prefix}vm="
        with Netlink() as kernel:
            taps = [link for link in kernel.links() if link.alias.startswith(prefix)]
            known = names() if taps else ()
            owners = [(link.alias.removeprefix(prefix).partition(":")[0], link) for link in taps]
            leaked = [(vm, link) for vm, link in owners if vm not in known]
            for _, link in leaked:
                kernel.delete(link.index)
        return tuple(vm for vm, _ in leaked)

    @property
    def _prefix(self) -> str:
        return f"mikrom:{self._owner}:"

    def _alias(self, record: VMRecord, interface: Interface) -> str:
        return f"{self._prefix}vm={record.vm}:nic={interface.name}"

    def _bridge_name(self, record: VMRecord, network: str) -> str:
        return f"mkb{_hash(f'{self._owner} {record.project} {network}', 6)}"

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
            time.sleep(_WAIT_S)
        try:
            yield
        finally:
            locks.give_back(lock)

    def _bridge(self, kernel: Netlink, record: VMRecord, nic: NetworkInterface) -> Link:
        name, alias = self._bridge_name(record, nic.network), f"{self._prefix}network={record.project}/{nic.network}"
        found = kernel.link(name)
        if found is not None and found.alias == alias and found.up:
            return found
        if found is None:
            kernel.add_bridge(name)
            found = kernel.link(name)
        elif found.alias not in {"", alias}:  # one without an alias is ours: its maker was killed before it had one
            raise self._taken(record, f"bridge {name}", found)
        if found is None:
            raise TemporaryError(f"bridge {name} vanished as soon as it was made", vm=record.vm, step=_STEP)
        prefix = IPv4Network(nic.cidr).prefixlen
        kernel.add_address(found.index, IPv4Interface(f"{nic.gateway}/{prefix}"))
        if nic.nat:
            _translate(record.vm, name, nic.cidr)
        kernel.set_up(found.index, alias=alias)
        return found

    def _tap(self, kernel: Netlink, record: VMRecord, interface: Interface, bridge: Link) -> None:
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

    def _taken(self, record: VMRecord, what: str, found: Link) -> PermanentError:
        message = f"{what} is somebody else's (alias {found.alias!r}): remove it, or rename what it belongs to"
        return PermanentError(message, vm=record.vm, step=_STEP)


def _drop_if_unused(kernel: Netlink, vm: str, name: str) -> None:
    bridge = kernel.link(name)
    if bridge is not None and not any(link.master == bridge.index for link in kernel.links()):
        if _has_table(name):
            _nft(vm, f"delete table ip {name}")
        kernel.delete(bridge.index)


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


def _translate(vm: str, bridge: str, cidr: str) -> None:
    """What leaves the network leaves under the host's own address."""
    _nft(
        vm,
        f"""table ip {bridge} {{}}
delete table ip {bridge}
table ip {bridge} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {cidr} oifname != "{bridge}" masquerade
  }}
}}
""",
    )
    try:
        if _FORWARD.read_text().strip() == "0":
            _FORWARD.write_text("1")
    except OSError as error:
        message = f"cannot let this host forward packets ({_FORWARD}: {error.strerror}), which nat needs"
        raise PermanentError(message, vm=vm, step=_STEP) from error


def _has_table(name: str) -> bool:
    try:
        done = subprocess.run((_NFT, "list", "table", "ip", name), capture_output=True, timeout=_NFT_S, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def _nft(vm: str, script: str) -> None:
    try:
        done = subprocess.run(
            (_NFT, "-f", "-"), input=script, text=True, capture_output=True, timeout=_NFT_S, check=False
        )
    except FileNotFoundError:
        message = "nat needs the program nft: install nftables, or leave nat out of the network"
        raise PermanentError(message, vm=vm, step=_STEP) from None
    except subprocess.TimeoutExpired as error:
        raise TemporaryError(f"nft gave no answer within {_NFT_S:g} s", vm=vm, step=_STEP) from error
    if done.returncode:
        raise PermanentError(f"nft refused: {done.stderr.strip()[:300]}", vm=vm, step=_STEP)


def _hash(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size).hexdigest()
