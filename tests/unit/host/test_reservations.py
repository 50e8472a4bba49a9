"""What VMs are promised never passes what the host has; who asks too much hears need and have."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Boot, DesiredVM, Machine, PinnedFile, Policy, RootDisk, VMSpec
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.observe import capacity
from mikrom_reconcile.host.orders.preconditions import Reservations
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records, UnreadableRecord
from tests.contract.drivers import record_of
from tests.fakes import HOST, SPEC, FakeDriver, HeldClock, desired_vm, order

MEM_SIZE_MIB = FakeDriver().memory_mib


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def test_promises_end_where_the_memory_ends(records: Records) -> None:
    reservations = Reservations(mem_size_mib=1000, need_mib=MEM_SIZE_MIB, records=records, clock=HeldClock())
    for vm in ("a", "a"):
        assert reservations.reserve(vm, 600) == ""
        records.write(record_of("a", mem_size_mib=600))
    assert reservations.reserve("b", 500) == (
        "it needs 500 MiB and 400 MiB are left: of 1000 MiB that the host has, 600 are promised to 1 other VMs"
    )
    assert reservations.reserve("b", 400) == ""
    reservations.release("a")
    assert reservations.reserve("c", 600) == ""


def test_what_other_processes_ordered_counts(records: Records) -> None:
    clock = HeldClock()
    reservations = Reservations(mem_size_mib=1000, need_mib=MEM_SIZE_MIB, records=records, clock=clock)
    assert reservations.reserve("a", 500) == ""
    records.write(record_of("a", mem_size_mib=500))
    records.write(record_of("b", mem_size_mib=400))
    records.write(replace(record_of("c", mem_size_mib=900), state="stopped"))
    records.write(replace(record_of("d", mem_size_mib=900), crash_loop=True))
    clock.moved_s += 0.001
    assert "100 MiB are left" in reservations.reserve("e", 101)
    assert reservations.reserve("e", 100) == ""


def test_what_was_promised_before_is_kept_on_a_host_that_is_too_small_by_now(records: Records) -> None:
    records.write(record_of("a", mem_size_mib=900))
    records.write(record_of("b", mem_size_mib=900))
    reservations = Reservations(mem_size_mib=1000, need_mib=MEM_SIZE_MIB, records=records, clock=HeldClock())
    assert reservations.reserve("a", 900) == ""
    assert reservations.reserve("a", 901)


def test_a_promise_that_no_record_tells_of_yet_holds_until_its_order_has_ended(records: Records) -> None:
    reservations = Reservations(mem_size_mib=1000, need_mib=MEM_SIZE_MIB, records=records, clock=HeldClock())
    assert reservations.reserve("a", 800) == ""
    assert "200 MiB are left" in reservations.reserve("b", 800)
    reservations.commit("a", None)
    assert reservations.reserve("b", 800) == ""


def test_the_orders_of_another_process_are_known_within_twenty_times_what_it_takes_to_count(records: Records) -> None:
    clock, elsewhere = HeldClock(), Records(records.state_dir)
    reservations = Reservations(mem_size_mib=1000, need_mib=MEM_SIZE_MIB, records=records, clock=clock)
    for mem_size_mib, ip in ((300, "10.0.0.2"), (600, "10.0.0.3")):
        elsewhere.write(replace(record_of("a", mem_size_mib=mem_size_mib), addresses={"eth0": ip}))
        clock.moved_s += 0.001
        assert (reservations.reserve("b", 500) == "") == (mem_size_mib == 300)
        assert reservations.claim("c", frozenset({(ip, True)})) == f"{ip} is a's here"
        reservations.commit("b", None)


def test_refusals_in_a_row_read_the_records_once(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        records.write(record_of(f"a-{number}", mem_size_mib=200))
    read, reads = records.at, list[str]()

    def counted(vm: str) -> VMRecord | UnreadableRecord | None:
        reads.append(vm)
        return read(vm)

    monkeypatch.setattr(records, "at", counted)
    reservations = Reservations(mem_size_mib=1000, need_mib=MEM_SIZE_MIB, records=records, clock=HeldClock())
    assert all(reservations.reserve(f"b-{number}", 200) for number in range(100))
    assert len(reads) == 5


def test_a_vm_that_is_being_restarted_keeps_its_memory_while_it_is_down(records: Records) -> None:
    driver, clock, heard = FakeDriver(), HeldClock(), []
    most = capacity().mem_size_mib

    def on_step(vm: str, step: str) -> None:
        if vm == "a" and step == "recording the order" and driver.calls[-1:] == ["stop"]:
            clock.moved_s += 1  # its guest took that long to go
            heard.append(host.execute(order("create", "b", desired=desired_vm("b", all_of_it))))

    all_of_it = VMSpec(image="hello", machine=Machine(mem_size_mib=most))
    host = HostAgent(HOST, driver=driver, records=records, clock=clock, on_step=on_step)
    created = host.execute(order("create", "a", desired=desired_vm("a", SPEC)))
    restarted = host.execute(order("restart", "a", created.observed, desired=desired_vm("a", all_of_it)))
    assert restarted.result == "done", restarted.error
    assert [outcome.result for outcome in heard] == ["failed_permanent"]
    assert "0 MiB are left" in (heard[0].error or "")


def test_a_vm_that_does_not_fit_is_refused_before_anything_is_written(records: Records) -> None:
    host = HostAgent(HOST, driver=FakeDriver(), records=records, clock=HeldClock())
    too_much = VMSpec(image="hello", machine=Machine(mem_size_mib=capacity().mem_size_mib + 1))
    outcome = host.execute(order("create", "web-000", desired=desired_vm("web-000", too_much)))
    assert outcome.result == "failed_permanent"
    assert f"it needs {too_much.machine.mem_size_mib} MiB" in (outcome.error or "")
    assert records.read("web-000") is None
    stopped = desired_vm("web-000", too_much, state="stopped")
    assert host.execute(order("create", "web-000", desired=stopped)).result == "done"


def test_the_inventory_may_allow_more_or_less_than_the_host_has(records: Records) -> None:
    reservations = Reservations(mem_size_mib=1000, need_mib=MEM_SIZE_MIB, records=records, clock=HeldClock())
    assert reservations.reserve("a", 1500, 2000) == ""
    assert reservations.reserve("b", 600, 2000) == (
        "it needs 600 MiB and 500 MiB are left: of 2000 MiB that the inventory allows, 1500 are promised to 1 other VMs"
    )
    reservations.release("a")
    assert "of 300 MiB that the inventory allows" in reservations.reserve("b", 301, 300)


def test_an_order_brings_the_limit_of_the_inventory(records: Records) -> None:
    host = HostAgent(HOST, driver=FakeDriver(), records=records, clock=HeldClock())
    most = capacity().mem_size_mib
    larger = VMSpec(image="hello", machine=Machine(mem_size_mib=most + 1))
    for limit_mib, result in ((most, "failed_permanent"), (2 * most, "done")):
        sent = order("create", "web-000", desired=desired_vm("web-000", larger))
        outcome = host.execute(replace(sent, action=replace(sent.action, mem_limit_mib=limit_mib)))
        assert outcome.result == result, outcome.error


def with_address(vm: str, ip: str) -> DesiredVM:
    return replace(desired_vm(vm), addresses={"eth0": ip})


def test_an_address_that_another_vm_has_is_refused_before_anything_is_done(records: Records) -> None:
    driver = FakeDriver()
    host = HostAgent(HOST, driver=driver, records=records, clock=HeldClock())
    seen = host.execute(order("create", "a", desired=with_address("a", "10.0.0.2"))).observed
    refused = host.execute(order("create", "b", desired=with_address("b", "10.0.0.2")))
    assert refused.result == "failed_temporary", "the other may give it up"
    assert "10.0.0.2 is a's here: two VMs of a host cannot have one address" in str(refused.error)
    assert (records.read("b"), list(driver.vmms)) == (None, ["a"])
    assert host.execute(order("restart", "a", seen, desired=with_address("a", "10.0.0.3"))).result == "done"
    assert host.execute(order("create", "b", desired=with_address("b", "10.0.0.2"))).result == "done"


def test_an_address_that_another_process_gave_away_is_refused_once_it_was_counted(records: Records) -> None:
    clock = HeldClock()
    reservations = Reservations(mem_size_mib=1000, need_mib=MEM_SIZE_MIB, records=records, clock=clock)
    assert reservations.claim("a", frozenset({("10.0.0.2", True)})) == ""
    assert reservations.claim("b", frozenset({("10.0.0.2", True)})) == "10.0.0.2 is a's here", "no record says so yet"
    reservations.commit("a", None)
    assert reservations.claim("b", frozenset({("10.0.0.2", True)})) == "", "a's order came to nothing"
    records.write(replace(record_of("c"), addresses={"eth0": "10.0.0.4"}))
    clock.moved_s += 0.001
    assert reservations.claim("d", frozenset({("10.0.0.4", True)})) == "10.0.0.4 is c's here"


def protected(vm: str, spec: VMSpec = SPEC, *, is_protected: bool = True) -> DesiredVM:
    return replace(desired_vm(vm, spec), policy=Policy(prevent_destroy=is_protected))


def root(digit: str, *, read_only: bool = False) -> VMSpec:
    kernel = PinnedFile(source="file:///k", sha256="0" * 64)
    disk = RootDisk(source="file:///r", sha256=digit * 64, read_only=read_only)
    return VMSpec(image="web", boot=Boot(kernel=kernel, rootfs=disk))


def test_a_protected_vm_and_what_it_wrote_to_its_root_disk_stay(records: Records) -> None:
    driver = FakeDriver()
    host = HostAgent(HOST, driver=driver, records=records, clock=HeldClock())
    seen = host.execute(order("create", "a", desired=protected("a", root("1")))).observed
    for hurting in (order("delete", "a", seen), order("restart", "a", seen, desired=protected("a", root("2")))):
        driver.calls.clear()
        refused = host.execute(hurting)
        assert refused.result == "failed_permanent"
        assert "recorded as protected; lift that first" in str(refused.error)
        assert driver.calls == []
    found = records.read("a")
    assert isinstance(found, VMRecord)
    assert found.spec == root("1")
    lifted = host.execute(order("update", "a", found, desired=protected("a", root("1"), is_protected=False))).observed
    assert host.execute(order("delete", "a", lifted)).result == "done"


def test_a_protected_vm_without_anything_to_lose_may_have_another_image(records: Records) -> None:
    host = HostAgent(HOST, driver=FakeDriver(), records=records, clock=HeldClock())
    seen = host.execute(order("create", "a", desired=protected("a", root("1", read_only=True)))).observed
    desired = protected("a", root("2", read_only=True))
    assert host.execute(order("restart", "a", seen, desired=desired)).result == "done"


def test_a_file_that_one_vm_writes_is_no_others(records: Records) -> None:
    reservations = Reservations(mem_size_mib=1, need_mib=MEM_SIZE_MIB, records=records, clock=HeldClock())
    assert reservations.claim("a", frozenset({("file:///a", True), ("file:///seed", False)})) == ""
    assert reservations.claim("b", frozenset({("file:///a", False)})) == "file:///a is a's here"
    assert reservations.claim("b", frozenset({("file:///seed", True)})) == "file:///seed is a's here"
    assert reservations.claim("b", frozenset({("file:///seed", False)})) == ""
