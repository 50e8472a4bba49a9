"""What is suspended: its memory goes on once, in a VMM of its own, or is not used at all, and that is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Drive, Machine, NetworkInterface, RateLimiter, State, VMSpec
from mikrom_reconcile.core.model.observed import VMMFacts
from mikrom_reconcile.core.model.plan import Order
from mikrom_reconcile.host.drivers import memory
from mikrom_reconcile.host.ports import VMRecord
from tests.contract.drivers import DEADLINE_S, KINDS, Bench, RealBench, record_of
from tests.contract.hosts import Host
from tests.contract.test_driver import NOTHING, console, wait_for_console
from tests.contract.test_host_killed import Prepare, assert_as_wanted, killed_before_step, next_run, same_order_again
from tests.fakes import BIGGER, desired_vm
from tests.guests import MEM_MIB
from tests.netns import own_namespace

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
every_driver = pytest.mark.parametrize("bench", [kind for name, kind in KINDS.items() if name != "qemu"], indirect=True)
VM = "web-000"

WENT_ON = "it went on from its memory"


def suspend(bench: Bench, record: VMRecord) -> VMRecord:
    """Suspend it as an order does; the record that says so."""
    bench.driver.suspend(record, deadline_s=DEADLINE_S)
    suspended = replace(record, state="suspended")
    bench.another().stop(suspended, grace_s=0)
    return suspended


@every_driver
def test_a_suspended_guest_goes_on_in_another_vmm_as_often_as_it_is_suspended(bench: Bench) -> None:
    record = record_of("a", "mikrom.heartbeat=1")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    wait_for_console(bench, "a", "MIKROM-UP")
    for _ in range(2):
        before = bench.pids("a")
        suspended = suspend(bench, record)
        assert bench.another().observe(suspended) == VMMFacts(status="none", end="suspended")
        assert bench.pids("a") == []
        assert bench.another().start(record, deadline_s=DEADLINE_S) == WENT_ON
        facts = bench.driver.observe(record)
        assert (facts.status, facts.drift) == ("running", ())
        assert bench.pids("a") not in ([], before)
    bench.driver.stop(record, grace_s=DEADLINE_S)
    assert console(bench, "a").count("MIKROM-UP") == 1
    assert console(bench, "a").endswith("MIKROM-CAD bye\n")
    assert bench.driver.observe(record).end == "clean"


@every_driver
def test_a_memory_goes_on_once_whatever_lets_the_guest_run(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    bench.driver.suspend(record, deadline_s=DEADLINE_S)
    assert bench.driver.observe(record).status == "paused"
    bench.driver.set_paused(record, paused=False, deadline_s=DEADLINE_S)
    bench.kill("a")
    assert bench.driver.observe(record) == VMMFacts(status="none", end="killed")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    suspend(bench, record)
    bench.driver.start(record, deadline_s=DEADLINE_S)
    bench.kill("a")
    assert bench.driver.observe(record) == VMMFacts(status="none", end="killed")
    assert bench.driver.start(record, deadline_s=DEADLINE_S) == ""


@every_driver
def test_who_is_killed_once_its_memory_is_whole_is_suspended(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    bench.driver.suspend(record, deadline_s=DEADLINE_S)
    bench.kill("a")
    assert bench.driver.observe(record).end == "suspended"
    assert bench.driver.start(record, deadline_s=DEADLINE_S) == WENT_ON


@every_driver
@pytest.mark.parametrize("state", ["stopped", "absent"])
def test_a_stop_that_is_meant_forgets_the_memory(bench: Bench, state: State) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    suspend(bench, record)
    bench.driver.stop(record, grace_s=0)  # as who cleans up after a start that failed
    assert bench.driver.observe(record).end == "suspended"
    bench.driver.stop(replace(record, state=state), grace_s=DEADLINE_S)
    assert bench.driver.observe(record).end != "suspended"
    assert bench.driver.start(record, deadline_s=DEADLINE_S) == ""


@every_driver
def test_a_memory_of_another_spec_is_not_used_and_that_is_said(bench: Bench) -> None:
    bench.driver.start(record_of("a"), deadline_s=DEADLINE_S)
    suspend(bench, record_of("a"))
    note = bench.driver.start(record_of("a", mem_size_mib=8), deadline_s=DEADLINE_S)
    assert "its spec has changed" in note
    assert bench.driver.observe(record_of("a", mem_size_mib=8)).status == "running"
    bench.driver.delete(record_of("a"))
    assert bench.leftovers() == []


@every_driver
def test_what_is_down_has_no_memory_to_keep(bench: Bench) -> None:
    suspended = suspend(bench, record_of("a"))
    assert bench.driver.observe(suspended) == NOTHING
    bench.driver.delete(suspended)
    assert bench.leftovers() == []


# ---- what does not fit --------------------------------------------------------------------------------------------


def another_cpu(bench: RealBench, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory, "_cpu", lambda: "Other CPU")


def another_version(bench: RealBench, patch: pytest.MonkeyPatch) -> None:
    written = bench.state_file("a", "suspended.json")
    written.write_text(written.read_text().replace("Firecracker 1.", "Firecracker 0."))


def gone(bench: RealBench, patch: pytest.MonkeyPatch) -> None:
    bench.state_file("a", "memory.img").unlink()


def short(bench: RealBench, patch: pytest.MonkeyPatch) -> None:
    os.truncate(bench.state_file("a", "memory.img"), 4096)


def unreadable_devices(bench: RealBench, patch: pytest.MonkeyPatch) -> None:
    path = bench.state_file("a", "devices.bin")
    found = path.stat()
    path.write_bytes(path.read_bytes()[:-8] + b"nonsense")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (another_cpu, "and is Other CPU"),
        (another_version, "its VMM was Firecracker 0."),
        (gone, ", and is gone"),
        (short, ", and is 4096 bytes changed at "),
        (unreadable_devices, "its VMM refused: Load snapshot error"),
    ],
)
def test_a_memory_that_does_not_fit_is_a_cold_boot_that_is_said(
    real: RealBench, monkeypatch: pytest.MonkeyPatch, harm: Callable[[RealBench, pytest.MonkeyPatch], None], reason: str
) -> None:
    record = record_of("a")
    real.driver.start(record, deadline_s=DEADLINE_S)
    suspend(real, record)
    harm(real, monkeypatch)
    note = real.driver.start(record, deadline_s=DEADLINE_S)
    assert note.startswith("a cold boot, its memory is lost: ")
    assert reason in note
    assert real.driver.observe(record).status == "running"
    assert len(real.pids("a")) == 1
    assert not real.state_file("a", "memory.img").exists()


@pytest.mark.kvm
def test_a_memory_is_closed_to_others_and_goes_with_its_first_use(real: RealBench) -> None:
    record = record_of("a")
    real.driver.start(record, deadline_s=DEADLINE_S)
    suspend(real, record)
    files = [real.state_file("a", name) for name in ("memory.img", "devices.bin", "suspended.json")]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 3
    assert files[0].stat().st_size == record.spec.machine.mem_size_mib << 20
    real.driver.start(record, deadline_s=DEADLINE_S)
    assert not any(path.exists() for path in files)


# ---- orders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def host(bench: Bench, own_environment: Path) -> Host:
    return Host(bench, own_environment)


@every_driver
def test_every_way_from_and_to_suspended(host: Host) -> None:
    host.created(VM)
    ways: list[tuple[State, str, str, str]] = [
        ("suspended", "suspend", "suspended", ""), ("running", "start", "running", WENT_ON),
        ("paused", "pause", "paused", ""), ("suspended", "suspend", "suspended", ""),
        ("paused", "start", "paused", WENT_ON), ("suspended", "suspend", "suspended", ""),
        ("stopped", "stop", "stopped", ""), ("suspended", "suspend", "stopped", ""),
        ("running", "start", "running", "a cold boot: no memory of it was on disk"),
        ("suspended", "suspend", "suspended", ""),
    ]  # fmt: skip
    for state, verb, phase, note in ways:
        (outcome,) = host.converge(VM, desired_vm(VM, state=state))
        assert (outcome.verb, outcome.result, outcome.note) == (verb, "done", note), outcome.error
        assert outcome.observed is not None
        assert outcome.observed.phase == phase
    (outcome,) = host.converge(VM, desired_vm(VM, BIGGER))
    assert "its spec has changed" in outcome.note
    host.converge(VM, None)
    assert host.leftovers() == []


def suspend_running(host: Host, vm: str) -> tuple[Order, DesiredVM]:
    wanted = desired_vm(vm, state="suspended")
    return host.order("suspend", vm, host.created(vm), desired=wanted), wanted


def suspend_paused(host: Host, vm: str) -> tuple[Order, DesiredVM]:
    wanted = desired_vm(vm, state="suspended")
    return host.order("suspend", vm, host.created(vm, desired_vm(vm, state="paused")), desired=wanted), wanted


def go_on(host: Host, vm: str) -> tuple[Order, DesiredVM]:
    host.created(vm)
    host.converge(vm, desired_vm(vm, state="suspended"))
    return host.order("start", vm, host.seen(vm)), desired_vm(vm)


@every_driver
@pytest.mark.parametrize("mend", [same_order_again, next_run])
@pytest.mark.parametrize("prepare", [suspend_running, suspend_paused, go_on])
def test_killed_before_any_step_it_is_mended(
    host: Host, prepare: Prepare, mend: Callable[[Host, Order, DesiredVM | None], None]
) -> None:
    for number in count():
        vm = f"web-{number:03d}"
        given, desired = prepare(host, vm)
        was_killed = killed_before_step(number, host, given)
        assert len(host.bench.pids(vm)) <= 1
        mend(host, given, desired)
        assert_as_wanted(host, vm, desired)
        assert host.agent.console(vm, max_bytes=1000).content.count(b"MIKROM-UP") <= 1, "its memory was lost"
        host.converge(vm, None)
        if not was_killed:
            break
    assert number >= 2, "this verb was never killed"
    assert host.leftovers() == []


@pytest.mark.parametrize("bench", [kind for name, kind in KINDS.items() if name in {"real", "jailed"}], indirect=True)
def test_disks_links_and_metadata_are_there_when_it_goes_on_and_what_changed_meanwhile(host: Host) -> None:
    nic = NetworkInterface(network="prod", cidr="10.0.0.0/24", gateway="10.0.0.1")
    spec = VMSpec(
        image="hello", machine=Machine(mem_size_mib=MEM_MIB), drives={"data": Drive(size_mib=1)},
        network_interfaces={"eth0": nic}, mmds={"role": "web"},
    )  # fmt: skip
    running = replace(desired_vm(VM, spec), addresses={"eth0": "10.0.0.9"})
    slower = replace(nic, rate_limiter=RateLimiter(bandwidth_mbit=5))
    changed = replace(running, spec=replace(spec, mmds={"role": "db"}, network_interfaces={"eth0": slower}))
    with own_namespace():
        host.created(VM, running)
        host.converge(VM, replace(running, state="suspended"))
        for wanted in (running, changed):
            (outcome,) = host.converge(VM, wanted)
            assert (outcome.verb, outcome.note) == ("start", WENT_ON), outcome.error
            seen = host.seen(VM)
            assert seen is not None
            assert (seen.phase, seen.drift) == ("running", ())
            host.converge(VM, replace(wanted, state="suspended"))
        (drive,) = host.state_dir.glob("drives/*/*/data*")
        drive.write_bytes(b"x" * (1 << 20))
        (outcome,) = host.converge(VM, changed)
        assert "data" in outcome.note
        assert "a cold boot" in outcome.note
        host.converge(VM, None)
