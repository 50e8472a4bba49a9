"""For each row of the table of fields: another value, where that is seen, and how somebody undoes it by hand.

`tests/unit/core/test_field_paths.py` holds the two tables together, `test_fields.py` goes through this one.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Policy, VMSpec
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.host.drivers import qemu
from mikrom_reconcile.host.drivers.vmm_driver import Answer
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.host.resources.networks import Networks
from mikrom_reconcile.system import processes
from mikrom_reconcile.system.netlink import Netlink
from tests.contract.drivers import DEADLINE_S, Bench, QemuBench, RealBench, SimulatedBench
from tests.contract.hosts import Host
from tests.fakes import SPEC, desired_vm
from tests.guests import MEM_MIB

VM = "web-000"
MIB = 1 << 20
FIRECRACKER, QEMU, SIMULATED = "firecracker", "qemu", "simulated"


class Socket(http.client.HTTPConnection):
    """Firecracker's API, asked without a driver."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> tuple[int, Any]:
        try:
            self.request(method, path, body=None if content is None else json.dumps(content))
            answer = self.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            self.close()


def pinned(folder: Path, name: str, content: bytes) -> dict[str, str]:
    """A file that a spec can name, in the folder that images may come from."""
    path = folder / "state/images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"source": f"file://{path}", "sha256": hashlib.sha256(content).hexdigest()}


class World:
    """One running VM, how it is wanted, and the places where that is seen."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.host = Host(bench, folder)
        self.fields: dict[str, Any] = {
            **msgspec.to_builtins(replace(SPEC, boot_args="quiet")), "fleet": "web", "state": "running",
            "prune": {"max": 1, "allow_empty": False}, "lifecycle": {},
        }  # fmt: skip
        self.before = SPEC

    @property
    def driver(self) -> str:
        return self.bench.driver.name

    def set(self, path: str, value: Any) -> None:
        *above, last = path.split(".")
        target = self.fields
        for step in above:
            target = target.setdefault(step, {})
        target[last] = value

    def desired(self) -> DesiredVM:
        fields = self.fields
        policy = Policy(
            prune_max=fields["prune"]["max"],
            allow_empty=fields["prune"]["allow_empty"],
            prevent_destroy=fields["lifecycle"].get("prevent_destroy"),
        )
        spec = msgspec.convert({name: fields[name] for name in VMSpec.__struct_fields__}, VMSpec)
        known: dict[str, Any] = {
            "project": "shop", "fleet": fields["fleet"], "state": fields["state"], "policy": policy, "spec": spec
        }  # fmt: skip
        addresses = {name: nic.ip or "10.0.0.9" for name, nic in spec.network_interfaces.items()}
        return replace(desired_vm(VM), **known, spec_digest=spec_digest(**known), addresses=addresses)

    # ---- where things are seen --------------------------------------------------------------------------------------

    def recorded(self, path: str) -> Any:
        """What the record's file says."""
        record = json.loads((self.folder / "state/vms" / VM / "record.json").read_text())["record"]
        policy = record["policy"]
        found = {
            **record["spec"], "fleet": record["fleet"],
            "prune": {"max": policy["prune_max"], "allow_empty": policy["allow_empty"]},
            "lifecycle": {"prevent_destroy": policy["prevent_destroy"]},
        }  # fmt: skip
        for step in path.split("."):
            found = found[step]
        return found

    def config(self) -> dict[str, Any]:
        """What Firecracker says of itself."""
        assert isinstance(self.bench, RealBench)
        status, config = Socket(self.bench.socket(VM)).ask("GET", "/vm/config")
        assert status == 200
        return dict(config)

    def argv(self) -> list[str]:
        (pid,) = self.bench.pids(VM)
        return processes.arguments(pid)

    def of_qemu(self) -> Answer:
        """What the command line of a QEMU says."""
        return qemu.read_back(self.argv(), "running")

    def machine(self, name: str) -> Any:
        if isinstance(self.bench, QemuBench):
            return getattr(self.of_qemu().machine, name)
        if isinstance(self.bench, SimulatedBench):
            return json.loads((self.folder / f"state/sim/{VM}.json").read_text())["machine"][name]
        return self.config()["machine-config"].get(name)

    def boot_args(self) -> str:
        if isinstance(self.bench, QemuBench):
            return self.of_qemu().boot_args or ""
        if isinstance(self.bench, SimulatedBench):
            return str(json.loads((self.folder / f"state/sim/{VM}.json").read_text())["boot_args"])
        return str(self.config()["boot-source"]["boot_args"])

    def boots(self, part: str) -> str:
        """The file that the VMM was given as its kernel or initrd."""
        if isinstance(self.bench, QemuBench):
            argv = self.argv()
            return argv[argv.index(f"-{part}") + 1] if f"-{part}" in argv else ""
        name = {"kernel": "kernel_image_path", "initrd": "initrd_path"}[part]
        return str(self.config()["boot-source"].get(name) or "")

    def disks(self) -> dict[str, str]:
        if isinstance(self.bench, QemuBench):
            return {name: str(disk.path) for name, disk in self.of_qemu().disks.items()}
        return {drive["drive_id"]: drive["path_on_host"] for drive in self.config()["drives"]}

    def is_read_only(self) -> bool:
        if isinstance(self.bench, QemuBench):
            return self.of_qemu().disks["data"].read_only
        return bool(self.drive()["is_read_only"])

    def drive(self) -> dict[str, Any]:
        (found,) = (drive for drive in self.config()["drives"] if drive["drive_id"] == "data")
        return dict(found)

    def drive_limit(self, kind: str) -> int:
        """What it may do in a second."""
        bucket = self.drive()["rate_limiter"][kind]
        return int(bucket["size"] * 1000 // bucket["refill_time"])

    def has_entropy(self) -> bool:
        if isinstance(self.bench, QemuBench):
            return "virtio-rng-device" in self.argv()
        return self.config()["entropy"] is not None

    def balloon(self, name: str) -> Any:
        return self.config()["balloon"][name]

    def root_name(self) -> str:
        """What its root disk has to be called."""
        return f"root-{self.recorded('boot.rootfs.sha256')[:16]}.img"

    def interfaces(self) -> dict[str, str]:
        """Interfaces of the VMM and their taps."""
        if isinstance(self.bench, QemuBench):
            return {name: nic.tap for name, nic in self.of_qemu().interfaces.items()}
        return {nic["iface_id"]: nic["host_dev_name"] for nic in self.config()["network-interfaces"]}

    def metadata(self) -> dict[str, Any]:
        if isinstance(self.bench, QemuBench):
            return dict(json.loads(self.metadata_file().read_bytes().rstrip(b"\n\0")))
        assert isinstance(self.bench, RealBench)
        return dict(Socket(self.bench.socket(VM)).ask("GET", "/mmds")[1])

    def metadata_file(self) -> Path:
        (path,) = (self.folder / "state/vms" / VM).glob("metadata*")
        return path

    def limit(self) -> int | None:
        (nic,) = self.config()["network-interfaces"]
        bucket = (nic["rx_rate_limiter"] or {}).get("bandwidth")
        return bucket and bucket["size"] * 8 * 1000 // bucket["refill_time"] // 1_000_000

    def mtus(self) -> list[int | None]:
        """What the VMM tells its guest, and that of the tap."""
        nic = self.of_qemu().interfaces["eth0"]
        with Netlink() as kernel:
            tap = kernel.link(nic.tap)
        return [nic.mtu, tap.mtu if tap else None]

    def bridge(self) -> str:
        """The name of the bridge on which its tap is."""
        tap = self.interfaces()["eth0"]
        with Netlink() as kernel:
            links = {link.index: link for link in kernel.links()}
        (found,) = (link for link in links.values() if link.name == tap)
        return links[found.master].name

    def bridge_of(self, network: str) -> str:
        record = self.host.record(VM)
        nics = {"eth0": replace(record.spec.network_interfaces["eth0"], network=network)}
        record = replace(record, spec=replace(record.spec, network_interfaces=nics))
        return Networks((self.folder / "state").resolve()).of(record)[0].bridge

    def gateway(self) -> str:
        """The one address of its bridge."""
        with Netlink() as kernel:
            link = kernel.link(self.bridge())
            assert link is not None
            (address,) = kernel.addresses()[link.index]
        return address

    # ---- what somebody does behind our back --------------------------------------------------------------------------

    def edit_record(self) -> None:
        path = self.folder / "state/vms" / VM / "record.json"
        path.write_text(path.read_text().replace('"generation":', '"generation" :'))

    def run_the_old(self) -> None:
        """Somebody starts it as it was before."""
        record = self.host.record(VM)
        self.bench.driver.stop(record, grace_s=0)
        self.bench.driver.start(replace(record, spec=self.before), deadline_s=DEADLINE_S)

    def change_metadata(self) -> None:
        if isinstance(self.bench, QemuBench):
            file = self.metadata_file()
            file.write_bytes(file.read_bytes().replace(b'"role":"b"', b'"role":"a"'))
        else:
            assert isinstance(self.bench, RealBench)
            assert Socket(self.bench.socket(VM)).ask("PATCH", "/mmds", {"role": "a"})[0] == 204

    def change_limit(self) -> None:
        assert isinstance(self.bench, RealBench)
        content = {"iface_id": "eth0", "rx_rate_limiter": {"bandwidth": {"size": 7, "refill_time": 1000}}}
        assert Socket(self.bench.socket(VM)).ask("PATCH", "/network-interfaces/eth0", content)[0] == 204

    def change_drive_limit(self) -> None:
        assert isinstance(self.bench, RealBench)
        bucket = {"size": 7, "refill_time": 100}
        content = {"drive_id": "data", "rate_limiter": {"bandwidth": bucket, "ops": bucket}}
        assert Socket(self.bench.socket(VM)).ask("PATCH", "/drives/data", content)[0] == 204

    def flush_rules(self) -> None:
        nft("flush", "ruleset")

    def take_address(self) -> None:
        with Netlink() as kernel:
            link = kernel.link(self.bridge())
            assert link is not None
            kernel.remove_address(link.index, self.gateway())


@dataclass(frozen=True, kw_only=True)
class Row:
    """`value` is a function of the world where it is a file's. `shown`, of the world, is what is seen if not that.

    `also` changes with it, `drift` is the path told once it was undone. A row with `test` has a test of its own.
    """

    value: Any = None
    see: Callable[[World], Any] | None = None
    shown: Callable[[World], Any] | None = None
    undo: Callable[[World], None] = World.edit_record
    drift: str = "record"
    on: tuple[str, ...] = (FIRECRACKER, QEMU, SIMULATED)
    also: dict[str, Any] | None = None
    test: str = ""


REAL = (FIRECRACKER, QEMU)
NIC = "network_interfaces.eth0"


def machine(name: str, value: Any, *on: str) -> Row:
    return Row(
        value=value, see=lambda world: world.machine(name), undo=World.run_the_old, drift=f"machine.{name}",
        on=on or (*REAL, SIMULATED),
    )  # fmt: skip


def rules(line: str, *, value: Any, drift: str) -> Row:
    """The line is there once, until all rules are flushed."""
    return Row(
        value=value, see=lambda _: nft("list", "ruleset").count(line), shown=lambda _: 1,
        undo=World.flush_rules, drift=f"{NIC}.{drift}", on=REAL,
    )  # fmt: skip


def kernel(byte: bytes) -> Callable[[World], dict[str, str]]:
    """The demo guest, of another digest."""
    return lambda world: pinned(
        world.folder, f"kernel{byte!r}", ImageCache(world.folder / "state").hello().read_bytes() + byte
    )


def file(name: str, content: bytes, key: str = "") -> Callable[[World], Any]:
    def made(world: World) -> Any:
        found = pinned(world.folder, name, content)
        return found[key] if key else found

    return made


def existing_drive(world: World) -> str:
    path = (world.folder / "state/existing/data.img").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(MIB))
    return f"file://{path}"


def booted(part: str, digest: str) -> dict[str, Any]:
    """What has the digest recorded under `digest` in its path is what is booted."""
    return {
        "see": lambda world: world.recorded(digest)[:16] in world.boots(part), "shown": lambda _: True, "on": REAL,
    }  # fmt: skip


def record_only(value: Any) -> Row:
    return Row(value=value)


ROWS: dict[str, Row] = {
    "machine.vcpu_count": machine("vcpu_count", 2),
    "machine.mem_size_mib": machine("mem_size_mib", 2 * MEM_MIB),
    "machine.smt": machine("smt", True, FIRECRACKER, SIMULATED),  # noqa: FBT003
    "machine.cpu_template": Row(test="test_a_cpu_template_reaches_the_vmm_or_says_why_it_cannot"),
    "machine.huge_pages": Row(test="test_huge_pages_reach_the_vmm_or_it_says_how_many_lack"),
    "cpu_config.**": Row(test="test_a_custom_cpu_template_boots_and_one_that_firecracker_does_not_read_says_why"),
    "boot_args": Row(value="loud", see=World.boot_args, undo=World.run_the_old, drift="boot_args"),
    "boot": Row(
        value=lambda world: {"kernel": kernel(b"1")(world)}, also={"image": "web"},
        **booted("kernel", "boot.kernel.sha256"),
    ),
    "image": Row(value="web2", on=REAL),
    "boot.kernel.source": Row(
        value=lambda world: f"file://{world.folder}/state/images/../images/kernel{b'1'!r}", on=REAL,
    ),
    "boot.kernel.sha256": Row(
        value=lambda world: kernel(b"2")(world)["sha256"],
        also={"boot.kernel.source": lambda world: kernel(b"2")(world)["source"]},
        **booted("kernel", "boot.kernel.sha256"),
    ),
    "boot.initrd": Row(value=file("initrd", b"one"), **booted("initrd", "boot.initrd.sha256")),
    "boot.initrd.source": Row(value=lambda world: f"file://{world.folder}/state/images/../images/initrd", on=REAL),
    "boot.initrd.sha256": Row(
        value=file("initrd2", b"two", "sha256"),
        also={"boot.initrd.source": file("initrd2", b"two", "source")},
        **booted("initrd", "boot.initrd.sha256"),
    ),
    "boot.rootfs": Row(
        value=file("root", bytes(MIB)), on=REAL,
        see=lambda world: Path(world.disks()["rootfs"]).name, shown=World.root_name,
        undo=World.run_the_old, drift="drives.rootfs",
    ),
    "boot.rootfs.source": Row(value=lambda world: f"file://{world.folder}/state/images/../images/root", on=REAL),
    "boot.rootfs.sha256": Row(
        value=file("root2", b"2" * MIB, "sha256"), also={"boot.rootfs.source": file("root2", b"2" * MIB, "source")},
        see=lambda world: Path(world.disks()["rootfs"]).name, shown=World.root_name, on=REAL,
    ),
    "boot.rootfs.read_only": Row(
        value=True, on=REAL,
        see=lambda world: Path(world.disks()["rootfs"]).parent.name, shown=lambda _: "sha256",
    ),
    "boot.rootfs.size_mib": Row(test="test_what_the_init_of_a_container_image_is_told_costs_a_restart"),
    "boot.rootfs.init": Row(test="test_what_the_init_of_a_container_image_is_told_costs_a_restart"),
    "command": Row(test="test_what_the_init_of_a_container_image_is_told_costs_a_restart"),
    "env.**": Row(test="test_what_the_init_of_a_container_image_is_told_costs_a_restart"),
    "drives.*.is_root_device": Row(test="test_a_drive_that_a_kernel_boots_from_comes_first"),
    "drives.*.mount": Row(test="test_what_the_init_of_a_container_image_is_told_costs_a_restart"),
    "drives.*": Row(
        value={"size_mib": 1}, see=lambda world: "data" in world.disks(), shown=lambda _: True,
        undo=World.run_the_old, drift="drives.data", on=REAL,
    ),
    "drives.*.size_mib": Row(
        value=2, see=lambda world: Path(world.disks()["data"]).stat().st_size // MIB, on=REAL,
    ),
    "drives.*.read_only": Row(
        value=True, see=World.is_read_only, undo=World.run_the_old, drift="drives.data.read_only", on=REAL,
    ),
    "drives.*.rate_limiter.bandwidth_mbit": Row(
        value=8, see=lambda world: world.drive_limit("bandwidth") * 8 // 1_000_000, undo=World.change_drive_limit,
        drift="drives.data.rate_limiter.bandwidth_mbit", on=(FIRECRACKER,),
    ),
    "drives.*.rate_limiter.ops": Row(
        value=100, see=lambda world: world.drive_limit("ops"), undo=World.change_drive_limit,
        drift="drives.data.rate_limiter.ops", on=(FIRECRACKER,),
    ),
    "drives.*.on_delete": Row(value="delete", on=REAL),
    "drives.*.source": Row(
        value=existing_drive, also={"drives.data.size_mib": None, "drives.data.on_delete": "retain"},
        see=lambda world: f"file://{world.disks()['data']}", undo=World.run_the_old, drift="drives.data", on=REAL,
    ),
    "network_interfaces.*": Row(
        value={"network": "prod", "cidr": "10.0.0.0/24", "gateway": "10.0.0.1"},
        see=lambda world: "eth0" in world.interfaces(), shown=lambda _: True,
        undo=World.run_the_old, drift=NIC, on=REAL,
    ),
    "network_interfaces.*.network": Row(
        value="lab", see=World.bridge, shown=lambda world: world.bridge_of("lab"), on=REAL,
    ),
    "network_interfaces.*.cidr": Row(
        value="10.0.0.0/16", see=World.gateway, shown=lambda _: "10.0.0.1/16",
        undo=World.take_address, drift=f"{NIC}.bridge", on=REAL,
    ),
    "network_interfaces.*.gateway": Row(
        value="10.0.0.254", see=World.gateway, shown=lambda _: "10.0.0.254/16",
        undo=World.take_address, drift=f"{NIC}.bridge", on=REAL,
    ),
    "network_interfaces.*.nat": Row(
        value=True, also={f"{NIC}.guard": False},
        see=lambda _: nft("list", "ruleset").count("masquerade"), shown=lambda _: 1,
        undo=World.flush_rules, drift=f"{NIC}.nat", on=REAL,
    ),
    "network_interfaces.*.guard": rules("guard_sent", value=True, drift="guard"),
    "network_interfaces.*.isolation": rules("isolation_forward", value=True, drift="isolation"),
    "network_interfaces.*.egress.**": rules("chain egress_", value="deny", drift="egress"),
    "network_interfaces.*.host_access.**": rules("udp dport 53", value=["53/udp"], drift="host_access"),
    "network_interfaces.*.publish.**": rules("dnat to 10.0.0.9:80", value=80, drift="publish"),
    "network_interfaces.*.pool": Row(value="web", on=REAL),
    "network_interfaces.*.ip": Row(
        value="10.0.0.77", see=lambda world: "ip=10.0.0.77:" in world.boot_args(), shown=lambda _: True, on=REAL,
    ),
    "network_interfaces.*.mtu": Row(
        value=1400, see=World.mtus, shown=lambda _: [1400, 1400],
        undo=World.run_the_old, drift=f"{NIC}.mtu", on=(QEMU,),
    ),
    "network_interfaces.*.rate_limiter.bandwidth_mbit": Row(
        value=8, see=World.limit, undo=World.change_limit, drift=f"{NIC}.rate_limiter.bandwidth_mbit",
        on=(FIRECRACKER,),
    ),
    "mmds": Row(value={"role": "a"}, see=lambda world: world.metadata()["role"], shown=lambda _: "a", on=REAL),
    "mmds.**": Row(
        value="b", see=lambda world: world.metadata()["role"], undo=World.change_metadata, drift="mmds.role", on=REAL,
    ),
    "mmds_config.imds_compat": Row(test="test_what_only_later_releases_know_is_refused_by_name"),
    "entropy": Row(
        value=False, see=World.has_entropy, undo=World.run_the_old, drift="entropy", on=REAL,
    ),
    "vsock": Row(
        value={"guest_cid": 4}, see=lambda world: world.config()["vsock"]["guest_cid"], shown=lambda _: 4,
        undo=World.run_the_old, drift="vsock", on=(FIRECRACKER,),
    ),
    "vsock.guest_cid": Row(
        value=5, see=lambda world: world.config()["vsock"]["guest_cid"], undo=World.run_the_old,
        drift="vsock.guest_cid", on=(FIRECRACKER,),
    ),
    "balloon": Row(
        value={"amount_mib": 1}, see=lambda world: world.balloon("amount_mib"), shown=lambda _: 1,
        undo=World.run_the_old, drift="balloon", on=(FIRECRACKER,),
    ),
    "balloon.amount_mib": Row(test="test_a_balloon_of_a_guest_without_a_driver_says_so"),
    "balloon.deflate_on_oom": Row(
        value=False, see=lambda world: world.balloon("deflate_on_oom"), undo=World.run_the_old,
        drift="balloon.deflate_on_oom", on=(FIRECRACKER,),
    ),
    "balloon.stats_polling_interval_s": Row(
        value=5, see=lambda world: world.balloon("stats_polling_interval_s"), undo=World.run_the_old,
        drift="balloon.stats_polling_interval_s", on=(FIRECRACKER,),
    ),
    "checks.**": record_only({"type": "console", "expect": "MIKROM-UP"}),
    "restart.policy": record_only("never"),
    "restart.attempts": record_only(9),
    "restart.interval": record_only("1h"),
    "restart.delay": record_only("3s"),
    "fleet": record_only("api"),
    "state": Row(test="test_a_changed_state_is_seen_and_kept"),
    "prune.max": record_only(7),
    "prune.allow_empty": record_only(True),  # noqa: FBT003
    "lifecycle.prevent_destroy": record_only(True),  # noqa: FBT003
}  # fmt: skip
"""In an order in which each can be changed after those before it."""


def concrete(row: str) -> str:
    """The row's path for the names that are used here."""
    named = {
        "network_interfaces.*.egress.**": f"{NIC}.egress.default",
        "network_interfaces.*.host_access.**": f"{NIC}.host_access",
        "network_interfaces.*.publish.**": f"{NIC}.publish.8080",
        "drives.*": "drives.data",
        "network_interfaces.*": NIC,
        "mmds.**": "mmds.role",
        "checks.**": "checks.up",
    }
    for pattern, path in named.items():
        if row.startswith(pattern):
            return path + row.removeprefix(pattern)
    return row


def nft(*words: str) -> str:
    """What nft answers, in this namespace."""
    return subprocess.run(("nft", *words), capture_output=True, text=True, check=True).stdout
