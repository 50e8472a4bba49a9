"""What every driver does alike. `test_driver_gevent.py` runs all of it again in greenlets."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Boot, Machine, PinnedFile, RootDisk, VMSpec
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import Console, Drift, VMMFacts
from tests.contract.drivers import DEADLINE_S, KINDS, Bench, record_of, wait_until
from tests.guests import LINUX, MEM_MIB, SLOWNESS

NOTHING = VMMFacts(status="none")


def console(bench: Bench, vm: str) -> str:
    return bench.driver.console(vm, max_bytes=10_000).content.decode()


def wait_for_console(bench: Bench, vm: str, text: str) -> None:
    wait_until(lambda: text in console(bench, vm), f"{text!r} on the console of {vm}")


def test_of_a_vm_that_never_was_there_is_nothing(bench: Bench) -> None:
    assert bench.driver.observe(record_of("a")) == NOTHING
    assert bench.driver.console("a", max_bytes=100).content == b""
    assert bench.driver.strays(()) == ()


def test_a_started_vm_runs_as_its_spec_says(bench: Bench) -> None:
    record = record_of("web-001", "quiet mikrom.heartbeat=1 x=é", vcpu_count=2, mem_size_mib=2 * MEM_MIB)
    bench.driver.start(record, deadline_s=DEADLINE_S)

    facts = bench.driver.observe(record)
    assert (facts.status, facts.drift) == ("running", ())
    beside_another = bench.driver.observe(replace(record, spec=replace(record.spec, machine=Machine(), boot_args="")))
    assert beside_another.drift == (
        Drift(path="machine.vcpu_count", recorded=1, actual=2),
        Drift(path="machine.mem_size_mib", recorded=128, actual=2 * MEM_MIB),
        Drift(path="boot_args", recorded="", actual="quiet mikrom.heartbeat=1 x=é"),
    )
    assert [facts.pid] == bench.pids("web-001")
    assert 0 <= facts.age_s < DEADLINE_S
    wait_for_console(bench, "web-001", "MIKROM-UP quiet mikrom.heartbeat=1 x=é\n")


def test_starting_what_runs_changes_nothing(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    pids = bench.pids("a")
    bench.another().start(record, deadline_s=DEADLINE_S)
    assert bench.pids("a") == pids


def test_another_process_sees_and_stops_it(bench: Bench) -> None:
    bench.driver.start(record_of("a"), deadline_s=DEADLINE_S)
    assert bench.another().observe(record_of("a")).status == "running"
    bench.another().stop(record_of("a"), grace_s=DEADLINE_S)
    assert bench.driver.observe(record_of("a")).status == "none"


def test_a_vmm_of_an_earlier_vm_of_that_name_is_replaced(bench: Bench) -> None:
    bench.driver.start(record_of("a", uid="u1"), deadline_s=DEADLINE_S)
    before = bench.pids("a")
    bench.driver.start(record_of("a", "second", uid="u2"), deadline_s=DEADLINE_S)
    after = bench.pids("a")
    assert len(after) == 1
    assert after != before
    assert bench.driver.observe(record_of("a", "second", uid="u2")).drift == ()


def test_a_stopped_vm_left_by_itself(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    wait_for_console(bench, "a", "MIKROM-UP")
    bench.driver.stop(record, grace_s=DEADLINE_S)
    assert bench.driver.observe(record) == VMMFacts(status="none", end="clean")
    assert console(bench, "a").endswith("MIKROM-CAD bye\n")
    assert bench.pids("a") == []


@pytest.mark.parametrize("mode", ["ignore", "spin", "flood"])
def test_a_deaf_guest_is_killed_after_its_grace(bench: Bench, mode: str) -> None:
    record = record_of("a", f"mikrom.mode={mode}")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    bench.driver.stop(record, grace_s=0.1)
    assert bench.driver.observe(record) == VMMFacts(status="none", end="killed")
    assert bench.pids("a") == []


def test_no_grace_is_a_kill(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    bench.driver.stop(record, grace_s=0)
    assert bench.driver.observe(record).end == "killed"


@pytest.mark.parametrize("kind", [param for kind, param in KINDS.items() if kind in {"real", "qemu"}])
def test_a_container_image_has_ended_well_if_its_init_said_so_last(
    request: pytest.FixtureRequest, own_environment: Path, kind: str
) -> None:
    bench: Bench = request.getfixturevalue(kind)
    plain = record_of("a", "mikrom.mode=exit:0")
    rootfs = RootDisk(source="oci:nginx", sha256="0" * 64)
    boot = Boot(kernel=PinnedFile(source="file:///k", sha256="0" * 64), rootfs=rootfs)
    container = replace(plain, spec=replace(plain.spec, image="web", boot=boot))
    (own_environment / "state/vms/a").mkdir(parents=True)
    printed = (own_environment / "state/vms/a/console.log").open("a")
    printed.write("MIKROM-INIT exit status 0\n")  # of an earlier boot
    printed.flush()
    bench.driver.start(plain, deadline_s=DEADLINE_S)
    wait_until(lambda: not bench.pids("a"), "the guest's end")
    wait_until(lambda: bench.driver.observe(plain).status == "none", "the last of its threads")
    for text, end in (
        ("it reset itself\n", "crashed"),
        ("MIKROM-INIT exit status 3\r\n", "crashed"),
        ("MIKROM-INIT exit status 0\r\n[    2.1] reboot: Restarting system\r\n", "clean"),
        ("MIKROM-INIT exit status 0\nMIKROM-INIT exit status 137\n", "crashed"),
        ("say MIKROM-INIT exit status 0\n", "crashed"),
    ):
        printed.write(text)
        printed.flush()
        assert bench.driver.observe(container).end == end, text
    assert bench.driver.observe(plain).end == "clean"
    printed.close()


@pytest.mark.parametrize(("mode", "end"), [("exit:50", "clean"), ("crash:50", "crashed")])
def test_how_a_guest_ended_by_itself_is_known(bench: Bench, mode: str, end: str) -> None:
    record = record_of("a", f"mikrom.mode={mode}")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    # not by observing: a Firecracker that is asked at the very moment its guest ends never ends itself
    wait_until(lambda: not bench.pids("a"), "the guest's end")
    # the threads of a VMM hold its lock for moments longer than it has files
    wait_until(lambda: bench.driver.observe(record).status == "none", "the last of its threads")
    assert bench.driver.observe(record) == VMMFacts(status="none", end=end)  # type: ignore[arg-type]
    bench.driver.stop(record, grace_s=DEADLINE_S)
    assert bench.driver.observe(record).end == end


def test_a_killed_vmm_is_known_as_killed_and_starts_again(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    bench.kill("a")
    assert bench.driver.observe(record) == VMMFacts(status="none", end="killed")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    assert bench.driver.observe(record).status == "running"
    assert len(bench.pids("a")) == 1


def test_a_hanging_vmm_is_unresponsive_and_a_stop_ends_it(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    pids = bench.pids("a")
    bench.hang("a")
    facts = bench.driver.observe(record)
    assert (facts.status, [facts.pid]) == ("unresponsive", pids)
    began = time.monotonic()
    bench.driver.stop(record, grace_s=DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S / 2, "who cannot hear is not worth the grace"
    assert bench.driver.observe(record).status == "none"


def test_a_start_replaces_a_hanging_vmm(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    before = bench.pids("a")
    bench.hang("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    assert bench.driver.observe(record).status == "running"
    assert len(bench.pids("a")) == 1
    assert bench.pids("a") != before


def test_a_paused_vm_keeps_its_vmm_and_goes_on_when_resumed(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    running = bench.driver.observe(record)
    for _ in range(2):
        bench.driver.set_paused(record, paused=True, deadline_s=DEADLINE_S)
        paused = bench.another().observe(record)
        assert (paused.status, paused.pid, paused.drift) == ("paused", running.pid, ())
    bench.driver.start(record, deadline_s=DEADLINE_S)
    assert bench.driver.observe(record).status == "paused", "a start leaves a guest that was booted as it is"
    for _ in range(2):
        bench.another().set_paused(record, paused=False, deadline_s=DEADLINE_S)
        assert (bench.driver.observe(record).status, bench.pids("a")) == ("running", [running.pid])


def test_a_paused_guest_is_stopped_in_order(bench: Bench) -> None:
    record = record_of("a")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    wait_for_console(bench, "a", "MIKROM-UP")
    bench.driver.set_paused(record, paused=True, deadline_s=DEADLINE_S)
    bench.driver.stop(record, grace_s=DEADLINE_S)
    assert bench.driver.observe(record) == VMMFacts(status="none", end="clean")
    assert console(bench, "a").endswith("MIKROM-CAD bye\n")


@pytest.mark.parametrize("paused", [True, False])
def test_what_is_not_there_or_does_not_answer_cannot_be_paused_or_resumed(bench: Bench, *, paused: bool) -> None:
    record = record_of("a")
    for harm in (bench.kill, bench.hang):
        bench.driver.start(record, deadline_s=DEADLINE_S)
        harm("a")
        with pytest.raises(TemporaryError, match=r"pausing|resuming"):
            bench.driver.set_paused(record, paused=paused, deadline_s=1)


def test_stopping_and_deleting_what_is_not_there_does_nothing(bench: Bench) -> None:
    bench.driver.stop(record_of("a"), grace_s=DEADLINE_S)
    bench.driver.delete(record_of("a"))
    bench.driver.delete(record_of("a"))
    assert bench.leftovers() == []


def test_a_delete_leaves_nothing_even_of_what_runs(bench: Bench) -> None:
    record = record_of("a", "mikrom.mode=ignore")
    bench.driver.start(record, deadline_s=DEADLINE_S)
    bench.driver.delete(record)
    assert bench.pids("a") == []
    assert bench.leftovers() == []
    assert bench.driver.observe(record) == NOTHING


def test_the_console_goes_on_over_restarts_and_is_cut_at_its_beginning(bench: Bench) -> None:
    for boot_args in ("first", "second"):
        bench.driver.start(record_of("a", boot_args), deadline_s=DEADLINE_S)
        wait_for_console(bench, "a", f"MIKROM-UP {boot_args}\n")
        bench.driver.stop(record_of("a", boot_args), grace_s=DEADLINE_S)
    whole = console(bench, "a")
    assert whole.startswith("MIKROM-UP first\nMIKROM-CAD bye\n")
    assert whole.endswith("MIKROM-UP second\nMIKROM-CAD bye\n")
    assert bench.driver.console("a", max_bytes=4).content == b"bye\n"


def test_a_console_can_be_read_on_from_where_it_ended(bench: Bench) -> None:
    first, second = record_of("a", "first"), record_of("a", "second")
    bench.driver.start(first, deadline_s=DEADLINE_S)
    wait_for_console(bench, "a", "MIKROM-UP first\n")
    before = bench.driver.console("a", max_bytes=1000)
    assert bench.driver.console("a", max_bytes=1000, after=before.end) == Console(end=before.end)
    bench.driver.stop(first, grace_s=DEADLINE_S)
    bench.driver.start(second, deadline_s=DEADLINE_S)
    wait_for_console(bench, "a", "MIKROM-UP second\n")
    after = bench.driver.console("a", max_bytes=1000, after=before.end)
    assert after.content == b"MIKROM-CAD bye\nMIKROM-UP second\n"
    assert after.end == before.end + len(after.content)
    assert bench.driver.console("a", max_bytes=4, after=before.end).content == b"ond\n"
    assert bench.driver.console("a", max_bytes=1000, after=10**9).content.startswith(b"MIKROM-UP first"), "a new file"


def test_a_vmm_that_nobody_knows_is_a_stray(bench: Bench) -> None:
    for vm in ("a", "b", "c"):
        bench.driver.start(record_of(vm), deadline_s=DEADLINE_S)
    bench.driver.stop(record_of("c"), grace_s=DEADLINE_S)
    assert [(stray.vm, [stray.pid]) for stray in bench.driver.strays({"a"})] == [("b", bench.pids("b"))]


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (VMSpec(image="debian"), '"hello"'),
        (VMSpec(image="hello", machine=Machine(vcpu_count=0)), "1 to 32"),
        (VMSpec(image="hello", machine=Machine(vcpu_count=33)), "1 to 32"),
        (VMSpec(image="hello", machine=Machine(mem_size_mib=1)), "2 or more"),
        (VMSpec(image="hello", boot_args="é" * 1024), "2047"),
    ],
)
def test_what_cannot_run_is_refused_with_a_reason_and_never_started(bench: Bench, spec: VMSpec, word: str) -> None:
    assert word in str(bench.driver.unsupported(spec))
    record = replace(record_of("a"), spec=spec)
    with pytest.raises(PermanentError, match="checking its spec") as raised:
        bench.driver.start(record, deadline_s=DEADLINE_S)
    assert word in str(raised.value)
    assert bench.leftovers() == []


@pytest.mark.parametrize(
    "spec",
    [
        VMSpec(image="hello", machine=Machine(vcpu_count=32, mem_size_mib=MEM_MIB if LINUX else 2)),
        VMSpec(image="hello", boot_args="x" * 2047),
    ],
)
def test_what_is_just_within_the_limits_runs(bench: Bench, spec: VMSpec) -> None:
    assert bench.driver.unsupported(spec) is None
    record = record_of("a", spec.boot_args, vcpu_count=spec.machine.vcpu_count, mem_size_mib=spec.machine.mem_size_mib)
    bench.driver.start(record, deadline_s=DEADLINE_S)
    facts = bench.driver.observe(record)
    assert (facts.status, facts.drift) == ("running", ())


def test_many_at_once_do_not_disturb_each_other(bench: Bench) -> None:
    records = [record_of(f"vm-{index:03d}", f"i={index}") for index in range(24 // SLOWNESS)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda record: bench.driver.start(record, deadline_s=DEADLINE_S), records))
        facts = list(pool.map(bench.driver.observe, records))
        assert [(fact.status, fact.drift) for fact in facts] == [("running", ())] * len(records)
        assert len({fact.pid for fact in facts}) == len(records)
        list(pool.map(lambda record: bench.driver.stop(record, grace_s=DEADLINE_S), records[::2]))
        list(pool.map(bench.driver.delete, records))
    assert bench.driver.strays(()) == ()
    assert bench.leftovers() == []
