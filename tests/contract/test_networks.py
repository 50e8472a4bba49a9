"""Real microVMs on real taps and bridges, in a network namespace of the test's own."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Egress, Machine, NetworkInterface, RateLimiter, State, VMSpec
from mikrom_reconcile.core.model.errors import PermanentError
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.host.resources.networks import Networks
from mikrom_reconcile.host.resources.provisioner import GarbageCollector
from mikrom_reconcile.host.resources.rules import FIELDS
from mikrom_reconcile.system.netlink import Link, Netlink
from tests.contract.drivers import RealBench, record_of, wait_until
from tests.contract.field_rows import Socket
from tests.contract.hosts import Host
from tests.fakes import desired_vm, order
from tests.guests import MEM_MIB
from tests.netns import own_namespace

VM = "web-000"


@pytest.fixture(autouse=True)
def namespace() -> Iterator[int]:
    with own_namespace() as inside:
        yield inside


@pytest.fixture
def host(real: RealBench, own_environment: Path) -> Host:
    return Host(real, own_environment)


def nic(**fields: Any) -> NetworkInterface:
    return NetworkInterface(**{"network": "prod", "cidr": "10.0.0.0/24", "gateway": "10.0.0.1", **fields})


def wanted(name: str = VM, address: str = "10.0.0.9", **fields: Any) -> DesiredVM:
    spec = VMSpec(image="hello", machine=Machine(mem_size_mib=MEM_MIB), network_interfaces={"eth0": nic(**fields)})
    return replace(desired_vm(name, spec), addresses={"eth0": address})


def record(name: str = "a", **fields: Any) -> VMRecord:
    spec = VMSpec(image="hello", network_interfaces={"eth0": nic(**fields)})
    return replace(record_of(name), spec=spec, addresses={"eth0": "10.0.0.9"})


def taps_in_place(networks: Networks, of: VMRecord) -> set[str]:
    return {interface.name for interface in networks.in_place(of)}


def soon() -> float:
    return time.monotonic() + 10


def nft(*words: str) -> str:
    return subprocess.run(("nft", *words), capture_output=True, text=True, check=True).stdout


def only_bridge() -> Link:
    (bridge,) = (link for link in devices().values() if not link.master)
    return bridge


def everything() -> tuple[Any, ...]:
    """Bridges with their addresses, taps with their bridges, and rules; indices are the kernel's own choice."""
    with Netlink() as kernel:
        found, addresses = kernel.links(), kernel.addresses()
        links = {link.name: link for link in found if link.name != "lo"}
    names = {link.index: name for name, link in links.items()}
    told = {
        name: (link.alias, link.up, names.get(link.master), addresses.get(link.index)) for name, link in links.items()
    }
    return told, nft("list", "ruleset"), Path("/proc/sys/net/ipv4/ip_forward").read_text()


def devices() -> dict[str, Link]:
    """Every device but the loopback."""
    with Netlink() as kernel:
        return {link.name: link for link in kernel.links() if link.name != "lo"}


def bandwidth(real: RealBench) -> list[int | None]:
    _, config = Socket(real.socket(VM)).ask("GET", "/vm/config")
    (found,) = config["network-interfaces"]
    limits = (found["rx_rate_limiter"], found["tx_rate_limiter"])
    return [limit and limit["bandwidth"] and limit["bandwidth"]["size"] for limit in limits]


@pytest.mark.kvm
def test_a_vm_has_its_tap_on_the_bridge_and_its_address_in_the_boot_arguments(host: Host, real: RealBench) -> None:
    seen = host.created(VM, wanted())
    assert (seen.addresses, seen.drift) == ({"eth0": "10.0.0.9"}, ())
    bridge, tap = sorted(devices().values(), key=lambda link: link.master)
    assert (tap.master, tap.up, bridge.up) == (bridge.index, True, True)
    _, config = Socket(real.socket(VM)).ask("GET", "/vm/config")
    assert config["network-interfaces"][0]["host_dev_name"] == tap.name
    assert config["boot-source"]["boot_args"].endswith("ip=10.0.0.9::10.0.0.1:255.255.255.0:web-000:eth0:off")
    host.converge(VM, None)
    assert devices() == {}
    assert host.records.released("shop").keys() == {"10.0.0.9"}


@pytest.mark.kvm
def test_a_rate_limit_changes_while_the_vm_runs_and_what_others_change_is_changed_back(
    host: Host, real: RealBench
) -> None:
    pid = host.created(VM, wanted()).pid
    for limit, size in ((8, 1_000_000), (80, 10_000_000), (None, None)):
        desired = wanted(rate_limiter=RateLimiter(bandwidth_mbit=limit))
        assert [(outcome.verb, outcome.result) for outcome in host.converge(VM, desired)] == [("update", "done")]
        assert bandwidth(real) == [size, size]
    tampered = {"iface_id": "eth0", "rx_rate_limiter": {"bandwidth": {"size": 7, "refill_time": 1000}}}
    assert Socket(real.socket(VM)).ask("PATCH", "/network-interfaces/eth0", tampered)[0] == 204
    seen = host.seen(VM)
    assert seen is not None
    assert [drift.path for drift in seen.drift] == ["network_interfaces.eth0.rate_limiter.bandwidth_mbit"]
    assert [outcome.verb for outcome in host.converge(VM, wanted())] == ["update"]
    assert bandwidth(real) == [None, None]
    assert real.pids(VM) == [pid]


@pytest.mark.kvm
def test_a_tap_that_was_lost_under_a_running_vm_is_drift(host: Host, real: RealBench) -> None:
    host.created(VM, wanted())
    (tap,) = (link for link in devices().values() if link.master)
    with Netlink() as kernel:
        kernel.delete(tap.index)
    seen = host.seen(VM)
    assert seen is not None
    assert [(drift.path, drift.actual) for drift in seen.drift] == [("network_interfaces.eth0", None)]
    assert [outcome.verb for outcome in host.converge(VM, wanted())] == ["restart"]
    assert len(real.pids(VM)) == 1
    assert len(devices()) == 2


def flush_rules() -> None:
    nft("flush", "ruleset")


def chain(field: str, family: str = "ip") -> tuple[str, str, str]:
    """The first chain that serves the field, as nft wants it named."""
    table = nft("list", "table", family, only_bridge().name)
    return family, only_bridge().name, next(word for word in table.split() if word.startswith(field))


def element(sets: str, family: str = "ip") -> str:
    found = nft("list", "map" if family == "ip" else "set", family, only_bridge().name, sets)
    return found.partition("elements = {")[2].partition("}")[0].partition(" comment")[0]


def empty_chain() -> None:
    nft("flush", "chain", *chain("nat_"))


def add_rule() -> None:
    nft("add", "rule", *chain("nat_"), "ip", "saddr", "10.9.0.0/24", "masquerade")


def let_pass() -> None:
    nft("insert", "rule", *chain("guard_sent", "bridge"), "accept")


def delete_element() -> None:
    nft("delete", "element", "bridge", only_bridge().name, "guard_own", "{", element("guard_own", "bridge"), "}")


def add_element() -> None:
    other = element("guard_own", "bridge").replace("10.0.0.9", "10.0.0.8")
    nft("add", "element", "bridge", only_bridge().name, "guard_own", "{", other, "}")


def add_element_of_nobody() -> None:
    nft("add", "element", "bridge", only_bridge().name, "guard_taps", "{", "eth7", "}")


def stop_forwarding() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")


def take_address() -> None:
    with Netlink() as kernel:
        kernel.remove_address(only_bridge().index, "10.0.0.1/24")


def add_address() -> None:
    with Netlink() as kernel:
        kernel.add_address(only_bridge().index, "10.9.0.1/24")


def take_bridge() -> None:
    with Netlink() as kernel:
        kernel.delete(only_bridge().index)


def take_tap_off() -> None:
    (tap,) = (link for link in devices().values() if link.master)
    with Netlink() as kernel:
        kernel.set_up(tap.index, alias=tap.alias, master=0)


HARM: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {
    "all rules flushed": (flush_rules, {"nat": False, "guard": False}),
    "its chain emptied": (empty_chain, {"nat": False}),
    "a rule too many": (add_rule, {"nat": False}),
    "a rule before the others": (let_pass, {"guard": False}),
    "its address forgotten": (delete_element, {"guard": False}),
    "an address more": (add_element, {"guard": "other rules"}),
    "what is nobody's": (add_element_of_nobody, {"guard": "other rules"}),
    "no forwarding": (stop_forwarding, {"nat": False}),
    "the address taken": (take_address, {"bridge": "without an address"}),
    "an address too many": (add_address, {"bridge": "10.0.0.1/24 10.9.0.1/24"}),
    "the bridge deleted": (take_bridge, {"bridge": "gone", "nat": False, "guard": False}),
    "the tap off its bridge": (take_tap_off, {"bridge": "without its tap"}),
}


@pytest.mark.kvm
def test_what_a_host_made_beside_its_vms_is_drift_and_made_again_while_they_run(host: Host, real: RealBench) -> None:
    pid = host.created(VM, wanted(nat=True)).pid
    before = everything()
    for harm, (act, drift) in HARM.items():
        act()
        seen = host.seen(VM)
        assert seen is not None
        expected = {f"network_interfaces.eth0.{what}": actual for what, actual in drift.items()}
        assert {item.path: item.actual for item in seen.drift} == expected, harm
        outcomes = host.converge(VM, wanted(nat=True))
        assert [(outcome.verb, outcome.result) for outcome in outcomes] == [("update", "done")], harm
        assert everything() == before, harm
    assert real.pids(VM) == [pid]


@pytest.mark.kvm
def test_rules_that_could_not_be_read_once_are_read_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.created(VM, wanted(nat=True))
    nft("flush", "ruleset")

    def drift() -> dict[str, Any]:
        seen = host.seen(VM)
        assert seen is not None
        return {item.path.removeprefix("network_interfaces.eth0."): item.actual for item in seen.drift}

    with monkeypatch.context() as without_nft:
        without_nft.setenv("PATH", "/nowhere")
        assert drift() == {"guard": "unknown", "nat": "unknown"}
    wait_until(lambda: drift() == {"guard": False, "nat": False}, "the rules to be read again")


@pytest.mark.kvm
def test_nat_comes_and_goes_while_vms_run_and_stays_while_one_wants_it(host: Host, real: RealBench) -> None:
    pids = [host.created(name, wanted(name, f"10.0.0.{ip}")).pid for name, ip in (("a", 8), ("b", 9))]
    assert nft("list", "ruleset").count("masquerade") == 0
    for nat, left in ((True, (1, 1)), (False, (1, 0))):
        for (name, ip), rules in zip((("a", 8), ("b", 9)), left, strict=True):
            outcomes = host.converge(name, wanted(name, f"10.0.0.{ip}", nat=nat))
            assert [(outcome.verb, outcome.result) for outcome in outcomes] == [("update", "done")]
            assert nft("list", "ruleset").count("masquerade") == rules
            assert not any(row.drift for row in host.agent.observe(ObserveQuery()).vms)
    assert [real.pids(name) for name in "ab"] == [[pid] for pid in pids]


@pytest.mark.kvm
def test_nat_goes_even_if_all_vms_are_changed_before_any_is_recorded(host: Host) -> None:
    names = {"a": "10.0.0.7", "b": "10.0.0.8", "c": "10.0.0.9"}
    together = threading.Barrier(len(names))

    def wait_for_each_other(_vm: str, step: str) -> None:
        if step == "recording the order":
            together.wait(10)

    other = host.another(wait_for_each_other)
    seen = {name: host.created(name, wanted(name, ip, nat=True)) for name, ip in names.items()}
    orders = [host.order("update", name, seen[name], desired=wanted(name, ip)) for name, ip in names.items()]
    with ThreadPoolExecutor(len(names)) as pool:
        outcomes = list(pool.map(other.execute, orders))
    assert [(outcome.result, outcome.error) for outcome in outcomes] == [("done", None)] * len(names)
    assert nft("list", "ruleset").count("masquerade") == 0
    assert not any(row.drift for row in host.agent.observe(ObserveQuery()).vms)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("new", "address", "between"),
    [
        ({"cidr": "10.5.0.0/24", "gateway": "10.5.0.1"}, "10.5.0.1/24", 2),
        ({"gateway": "10.0.0.254"}, "10.0.0.254/24", 2),
        ({"network": "lab"}, "10.0.0.1/24", 1),
    ],
    ids=["cidr", "gateway in the same subnet", "network"],
)
def test_a_changed_network_has_both_until_its_last_vm_has_changed(
    host: Host, new: dict[str, str], address: str, between: int
) -> None:
    for name, ip in (("a", 8), ("b", 9)):
        host.created(name, wanted(name, f"10.0.0.{ip}", nat=True))
    for name, addresses in (("a", between), ("b", 1)):
        subnet = "10.5.0" if "cidr" in new else "10.0.0"
        outcomes = host.converge(name, wanted(name, f"{subnet}.{8 if name == 'a' else 9}", nat=True, **new))
        assert [(outcome.verb, outcome.result) for outcome in outcomes] == [("restart", "done")]
        with Netlink() as kernel:
            found = kernel.addresses()
        assert {len(found[link.index]) for link in devices().values() if not link.master} == {addresses}
        assert not any(row.drift for row in host.agent.observe(ObserveQuery()).vms)
    assert found[only_bridge().index] == {address}
    assert nft("list", "ruleset").count("masquerade") == 1


@pytest.mark.kvm
def test_the_last_vm_that_wants_an_address_takes_it_along(host: Host) -> None:
    host.created("a", wanted("a", "10.0.0.8"))
    host.created("b", wanted("b", "10.5.0.8", cidr="10.5.0.0/24", gateway="10.5.0.1"))
    host.converge("a", None)
    with Netlink() as kernel:
        assert kernel.addresses()[only_bridge().index] == {"10.5.0.1/24"}


class SocketToAKernel(socket.socket):
    def bind(self, address: object) -> None:
        """It is connected already."""


def test_a_dump_that_was_interrupted_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_end, own_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    done = struct.pack("=IHHIIi", 20, 3, 2, 0, 0, 0)
    with Netlink() as real:
        real.add_bridge("seen")
        whole = [struct.pack("=BxHiII", 0, 0, link.index, 0, 0) for link in real.links()]
    socket_to_it = SocketToAKernel(fileno=own_end.detach())
    monkeypatch.setattr(socket, "socket", lambda *_: socket_to_it)
    with kernel_end, Netlink() as kernel:
        for sequence, (flags, links) in enumerate(((0x12, whole[:1]), (2, whole)), 1):
            for content in links:
                kernel_end.send(struct.pack("=IHHII", 16 + len(content), 16, flags, sequence, 0) + content)
            kernel_end.send(done[:8] + struct.pack("=I", sequence) + done[12:])
        assert len(list(kernel.links())) == len(whole) == 2


@pytest.mark.kvm
@pytest.mark.parametrize("what", ["tap", "bridge"])
def test_a_name_that_is_somebody_elses_stops_that_vm_alone(host: Host, real: RealBench, what: str) -> None:
    networks = Networks((host.state_dir).resolve())
    own = replace(record(VM), project="shop")
    networks.prepare(own, give_up_at=soon())
    (victim,) = (link for link in devices().values() if bool(link.master) == (what == "tap"))
    with Netlink() as kernel:
        kernel.set_up(victim.index, alias="precious")
    outcome = host.agent.execute(order("create", VM, desired=wanted()))
    assert outcome.result == "failed_permanent"
    assert f"{what} {victim.name} is somebody else's (alias 'precious')" in str(outcome.error)
    assert devices()[victim.name].alias == "precious"
    assert real.pids(VM) == []
    before = set(devices())
    network = {} if what == "tap" else {"network": "lab", "cidr": "10.1.0.0/24", "gateway": "10.1.0.1"}
    other = wanted("web-001", "10.0.0.10" if what == "tap" else "10.1.0.10", **network)
    assert host.agent.execute(order("create", "web-001", desired=other)).result == "done"
    host.converge("web-001", None)
    assert set(devices()) == before


def test_a_subnet_in_which_the_host_has_another_device_is_refused_until_it_has_not(tmp_path: Path) -> None:
    networks = Networks(tmp_path)
    with Netlink() as kernel:
        kernel.add_bridge("docker0")
        index = next(link.index for link in kernel.links() if link.name == "docker0")
        kernel.add_address(index, "10.0.0.7/24")
        with pytest.raises(PermanentError, match="the subnet of network prod, with device docker0, is somebody else's"):
            networks.prepare(record(), give_up_at=soon())
        assert {link.name for link in kernel.links()} == {"lo", "docker0"}
        kernel.remove_address(index, "10.0.0.7/24")
        kernel.add_address(index, "10.0.0.7/8")
        networks.prepare(record(), give_up_at=soon())
        kernel.add_address(index, "10.0.0.7/24")
        networks.prepare(record(), give_up_at=soon())  # nothing that runs is taken down for it


def test_links_are_made_once_by_many_and_bridges_go_with_the_last_tap(tmp_path: Path) -> None:
    networks, networks_records = Networks(tmp_path), Records(tmp_path)
    records = [record(f"vm-{number:02d}") for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: networks.prepare(one, give_up_at=soon()), records * 2))
    found = devices()
    assert len(found) == 21
    assert len({link.master for link in found.values()} - {0}) == 1
    assert all(taps_in_place(networks, one) == {"eth0"} for one in records)
    for one in records[1:]:
        networks_records.write(one)
    assert networks.sweep(give_up_at=soon()) == ("vm-00",)
    assert networks.sweep(give_up_at=soon()) == ()
    assert len(devices()) == 20
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: networks.remove(one, give_up_at=soon()), records * 2))
    assert devices() == {}


def test_a_tap_whose_vm_has_no_record_is_swept_up_by_its_host(tmp_path: Path) -> None:
    records = Records(tmp_path.resolve())
    records.write(record("stays"))
    networks = Networks(tmp_path.resolve())
    for name in ("stays", "leaked"):
        networks.prepare(record(name), give_up_at=soon())
    GarbageCollector("hv1", ImageCache(tmp_path), records).run()
    assert taps_in_place(networks, record("stays")) == {"eth0"}
    assert taps_in_place(networks, record("leaked")) == set()


@pytest.mark.kvm
def test_the_tap_of_an_interface_that_left_the_spec_is_swept_up_with_its_bridge(host: Host) -> None:
    two = {"eth0": nic(), "eth1": nic(network="lab", cidr="10.1.0.0/24", gateway="10.1.0.1")}
    desired = wanted()
    both = replace(desired.spec, network_interfaces=two)
    host.created(VM, replace(desired_vm(VM, both), addresses={"eth0": "10.0.0.9", "eth1": "10.1.0.9"}))
    assert [outcome.verb for outcome in host.converge(VM, desired)] == ["restart"]
    assert len(devices()) == 4
    assert Networks(host.state_dir.resolve()).sweep(give_up_at=soon()) == (VM,)
    assert len(devices()) == 2
    assert host.converge(VM, desired) == []


def test_what_a_killed_maker_left_without_an_alias_is_made_whole(tmp_path: Path) -> None:
    networks = Networks(tmp_path)
    networks.prepare(record(), give_up_at=soon())
    with Netlink() as kernel:
        for link in devices().values():
            kernel.set_up(link.index, alias="", master=0 if link.master else None)
    assert taps_in_place(networks, record()) == set()
    networks.prepare(record(), give_up_at=soon())
    assert taps_in_place(networks, record()) == {"eth0"}


def test_nat_is_a_table_of_the_bridges_own_and_goes_with_it(tmp_path: Path) -> None:
    networks = Networks(tmp_path)
    networks.prepare(record(nat=True), give_up_at=soon())
    rules = subprocess.run(("nft", "list", "ruleset"), capture_output=True, text=True, check=True).stdout
    assert "ip saddr 10.0.0.0/24" in rules
    assert rules.count("masquerade") == 1
    networks.remove(record(nat=True), give_up_at=soon())
    assert subprocess.run(("nft", "list", "ruleset"), capture_output=True, text=True, check=True).stdout == ""


def test_rules_without_nft_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PermanentError, match="install nftables, or give the network guard: false"):
        Networks(tmp_path).prepare(record(), give_up_at=soon())
    Networks(tmp_path).prepare(record(guard=False), give_up_at=soon())


@pytest.mark.parametrize("port", ["8080", "53/udp"])
def test_a_port_on_which_the_host_listens_is_not_published(tmp_path: Path, port: str) -> None:
    number, _, protocol = port.partition("/")
    networks, publishing = Networks(tmp_path), record(publish={port: 80})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if protocol else socket.SOCK_STREAM) as program:
        program.bind(("127.0.0.1", int(number)))
        if not protocol:
            program.listen()
        with pytest.raises(PermanentError, match=f"port {number}/.* of this host, which it publishes, is in use"):
            networks.prepare(publishing, give_up_at=soon())
    networks.prepare(publishing, give_up_at=soon())
    networks.prepare(publishing, give_up_at=soon())


@pytest.mark.kvm
def test_a_port_is_published_by_one_vm_of_a_host(host: Host) -> None:
    host.created("a", wanted("a", "10.0.0.8", publish={"8080": 80}))
    again = order("create", "b", desired=wanted("b", "10.0.0.9", publish={"8080/tcp": 80}), token=host.token)
    outcome = host.agent.execute(again)
    assert (outcome.result, "port 8080/tcp is a's here" in str(outcome.error)) == ("failed_temporary", True)
    host.created("b", wanted("b", "10.0.0.9", publish={"8080/udp": 80}))


@pytest.mark.kvm
def test_a_vm_that_goes_down_is_no_drift_of_those_beside_it(host: Host, real: RealBench) -> None:
    one = wanted("a", "10.0.0.8", publish={"8080": 80}, host_access=("80",), isolation=True, nat=True)
    host.created("a", one)
    pid = host.created("b", wanted("b", "10.0.0.9")).pid
    for state in ("suspended", "stopped", "running"):
        host.converge("a", replace(one, state=state))
        assert not any(row.drift for row in host.agent.observe(ObserveQuery()).vms), state
    host.converge("a", None)
    assert (host.next_order("b", wanted("b", "10.0.0.9")), real.pids("b")) == (None, [pid])


@pytest.mark.kvm
@pytest.mark.parametrize("state", ["suspended", "stopped"])
def test_a_port_is_free_once_a_vm_that_is_down_or_goes_down_publishes_another(host: Host, state: State) -> None:
    one, rules = wanted("a", "10.0.0.8", publish={"8080": 80}), []
    host.created("a", one)
    for port in ("8081", "8082"):
        one = replace(wanted("a", "10.0.0.8", publish={port: 80}), state=state)
        host.converge("a", one)
        rules.append([word for word in nft("list", "ruleset").split("tcp dport ")[1:] if " dnat to " in word])
    assert [[rule.split()[0] for rule in there] for there in rules] == [["8081"], ["8082"]]
    other = {"network": "lab", "cidr": "10.5.0.0/24", "gateway": "10.5.0.1", "publish": {"8081": 80}}
    assert host.created("b", wanted("b", "10.5.0.9", **other)).drift == ()


@pytest.mark.kvm
def test_no_rule_that_was_flushed_costs_a_restart(host: Host, real: RealBench) -> None:
    egress = Egress(default="deny")
    one = wanted(publish={"8080": 80}, host_access=("80",), isolation=True, nat=True, egress=egress)
    pid = host.created(VM, one).pid
    nft("flush", "ruleset")
    seen = host.seen(VM)
    assert seen is not None
    assert {drift.path for drift in seen.drift} == {f"network_interfaces.eth0.{field}" for field in FIELDS}
    assert [(outcome.verb, outcome.result) for outcome in host.converge(VM, one)] == [("update", "done")]
    assert real.pids(VM) == [pid]


@pytest.mark.kvm
def test_rules_of_one_vm_change_though_another_was_killed_before_its_own_did(host: Host, real: RealBench) -> None:
    host.created("a", wanted("a", "10.0.0.8", host_access=("80",)))
    host.created("b", wanted("b", "10.0.0.9", host_access=("80",)))
    recorded = host.record("b")
    changed = replace(recorded, spec=wanted("b", "10.0.0.9", host_access=("81",)).spec)
    host.records.write(changed)
    assert [outcome.result for outcome in host.converge("a", wanted("a", "10.0.0.8"))] == ["done"]
    seen = host.seen("b")
    assert seen is not None
    assert {drift.path for drift in seen.drift} >= {"network_interfaces.eth0.host_access"}
    host.converge("b", wanted("b", "10.0.0.9"))
    assert not any(row.drift for row in host.agent.observe(ObserveQuery()).vms)
    assert "dport" not in nft("list", "ruleset")


@pytest.mark.soak
def test_one_address_is_made_and_released_a_thousand_times(tmp_path: Path) -> None:
    networks = Networks(tmp_path)
    stay = record("stays")
    networks.prepare(stay, give_up_at=soon())
    for _ in range(1000):
        networks.prepare(record(), give_up_at=soon())
        with Netlink() as kernel:
            link = kernel.link(networks.of(record())[0].tap)
            assert link is not None
            kernel.delete(link.index)
    assert taps_in_place(networks, record()) == set()
