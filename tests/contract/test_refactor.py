"""VMs that are renamed, let go and taken over again: what runs goes on, whoever is killed meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Drive, NetworkInterface
from mikrom_reconcile.core.model.observed import ObservedVM, ObserveQuery
from mikrom_reconcile.core.model.plan import Order
from mikrom_reconcile.host.resources.networks import Networks
from tests.contract.drivers import KINDS, Bench, RealBench, SimulatedBench, wait_until
from tests.contract.field_rows import Socket
from tests.contract.hosts import Host
from tests.contract.test_host_killed import killed_before_step
from tests.fakes import SPEC, desired_vm
from tests.netns import own_namespace

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
every_driver = pytest.mark.parametrize("bench", [kind for name, kind in KINDS.items() if name != "qemu"], indirect=True)
WAS, VM = "web-000", "www-000"


@pytest.fixture
def host(bench: Bench, own_environment: Path) -> Iterator[Host]:
    host = Host(bench, own_environment)
    yield host
    host.close()


def renamed(host: Host, seen: ObservedVM, to: str = VM, desired: DesiredVM | None = None) -> ObservedVM:
    """The VM under another name."""
    outcome = host.agent.execute(host.order("rename", to, seen, moved_from=seen.name, desired=desired))
    assert (outcome.result, outcome.error) == ("done", None)
    assert host.seen(seen.name) is None
    assert outcome.observed == host.seen(to)
    assert outcome.observed is not None
    return outcome.observed


def pids(host: Host) -> list[int]:
    return [stray.pid for stray in host.bench.another().strays(())]


@every_driver
def test_a_renamed_vm_goes_on_and_is_served_by_its_new_name(host: Host) -> None:
    before = host.created(WAS)
    after = renamed(host, before)
    assert (after.pid, after.uid, after.phase, after.drift) == (before.pid, before.uid, "running", ())
    assert host.next_order(VM, desired_vm(VM)) is None
    assert b"MIKROM-UP" in host.agent.console(VM, max_bytes=1000).content
    assert host.agent.observe(ObserveQuery(strays=True)).strays == ()
    again = host.agent.execute(host.order("restart", VM, after, deadline_s=2))
    assert again.result == "done", again.error
    assert again.observed is not None
    assert again.observed.pid != before.pid
    assert pids(host) == [again.observed.pid]
    host.converge(VM, None)
    assert pids(host) == []
    assert host.leftovers() == []


@every_driver
def test_a_new_vm_of_the_former_name_has_files_of_its_own(host: Host) -> None:
    first = renamed(host, host.created(WAS))
    second = host.created(WAS)
    assert len(pids(host)) == 2
    assert {first.pid, second.pid} == set(pids(host))
    third = renamed(host, second, "old-000")
    back = renamed(host, first, WAS)
    assert (back.pid, third.pid) == (first.pid, second.pid)
    assert [row.name for row in host.agent.observe(ObserveQuery()).vms] == ["old-000", WAS]
    host.converge(WAS, None)
    assert pids(host) == [third.pid]
    assert host.created(WAS).phase == "running"
    for name in (WAS, "old-000"):
        host.converge(name, None)
    assert host.leftovers() == []


def same_order(host: Host, given: Order) -> None:
    assert host.another().execute(given).result in {"done", "already_done"}


def next_run(host: Host, given: Order) -> None:
    """It looks, and renames what still has its former name."""
    if seen := host.seen(given.action.moved_from):
        renamed(host, seen, given.action.vm)


@pytest.mark.parametrize("bench", [KINDS["real"], KINDS["simulated"]], indirect=True)
@pytest.mark.parametrize("mend", [same_order, next_run])
def test_who_is_killed_while_it_renames_loses_nothing(host: Host, mend: Callable[[Host, Order], None]) -> None:
    for number in count():
        was, vm = f"web-{number:03d}", f"www-{number:03d}"
        before = host.created(was)
        given = host.order("rename", vm, before, moved_from=was)
        was_killed = killed_before_step(number, host, given)
        assert len([row for row in host.agent.observe(ObserveQuery()).vms if row.uid == before.uid]) == 1
        mend(host, given)
        after = host.seen(vm)
        assert after is not None
        assert (after.pid, after.uid, after.drift, host.seen(was)) == (before.pid, before.uid, (), None)
        host.converge(vm, None)
        if not was_killed:
            break
    assert number >= 2
    assert host.leftovers() == []


@pytest.mark.kvm
@pytest.mark.parametrize("bench", [KINDS["real"], KINDS["jailed"]], indirect=True)
def test_its_links_its_address_its_drives_and_its_metadata_stay_but_for_its_name(host: Host, bench: RealBench) -> None:
    nic = NetworkInterface(network="prod", cidr="10.0.0.0/24", gateway="10.0.0.1")
    spec = replace(SPEC, network_interfaces={"eth0": nic}, drives={"data": Drive(size_mib=1)}, mmds={"role": "api"})
    with own_namespace():
        wish = replace(desired_vm(WAS, spec), addresses={"eth0": "10.0.0.9"})
        before = host.created(WAS, wish)
        after = renamed(host, before, desired=replace(wish, name=VM))
        assert (after.pid, after.drift, after.addresses) == (before.pid, (), {"eth0": "10.0.0.9"})
        _, told = Socket(bench.socket(WAS)).ask("GET", "/mmds")
        assert (told["mikrom"]["name"], told["role"]) == (VM, "api")
        assert Networks(host.state_dir).sweep(give_up_at=time.monotonic() + 9) == ()
        assert host.seen(VM) == after
        host.converge(VM, None)


@pytest.mark.parametrize("bench", [KINDS["real"], KINDS["simulated"]], indirect=True)
def test_a_suspended_vm_goes_on_under_its_new_name(host: Host) -> None:
    host.created(WAS)
    suspended = host.agent.execute(
        host.order("suspend", WAS, host.seen(WAS), desired=desired_vm(WAS, state="suspended"))
    )
    assert suspended.observed is not None
    after = renamed(host, suspended.observed, desired=desired_vm(VM, state="suspended"))
    assert after.phase == "suspended"
    outcome = host.agent.execute(host.order("start", VM, after))
    assert outcome.note == "it went on from its memory", outcome
    host.converge(VM, None)


def test_what_is_renamed_elsewhere_or_meanwhile_is_stale(tmp_path: Path) -> None:
    host = Host(SimulatedBench(tmp_path), tmp_path)
    first, second = host.created("a"), host.created("b")
    assert host.agent.execute(host.order("rename", "b", first, moved_from="a")).result == "stale"
    assert host.agent.execute(host.order("rename", "d", second, moved_from="c")).result == "stale"
    assert [row.name for row in host.agent.observe(ObserveQuery()).vms] == ["a", "b"]


@pytest.mark.parametrize("bench", [KINDS["real"], KINDS["simulated"]], indirect=True)
def test_a_vm_that_was_let_go_is_left_alone_until_it_is_taken_over(host: Host) -> None:
    host.agent.supervise(rescan_s=0.05)
    before = host.created(WAS)
    promised = host.agent.observe(ObserveQuery()).promised
    outcome = host.agent.execute(host.order("forget", WAS, before))
    assert outcome.observed is not None
    assert (outcome.result, outcome.observed.pid, outcome.observed.unmanaged) == ("done", before.pid, True)
    report = host.agent.observe(ObserveQuery(project="shop"))
    assert (report.vms, report.digests, report.promised) == ((), {}, promised)
    host.bench.kill(WAS)
    time.sleep(0.3)  # a restart that must not happen takes some 20 ms
    assert pids(host) == []
    taken = host.agent.execute(host.order("import", WAS, host.seen(WAS)))
    assert taken.result == "done"

    def is_back() -> bool:
        seen = host.seen(WAS)
        return seen is not None and seen.phase == "running"

    wait_until(is_back, "its supervision to bring it back")
    assert host.next_order(WAS, desired_vm(WAS)) is None
