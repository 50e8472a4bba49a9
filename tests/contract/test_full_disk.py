"""What needs no room works on a full disk, over every driver: to stop, to delete, to look, to bring back what died."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.errors import TemporaryError
from mikrom_reconcile.core.model.observed import ObserveQuery
from tests.contract.drivers import Bench, JailBench, RealBench, wait_until
from tests.contract.hosts import Host
from tests.fakes import desired_vm
from tests.full_disk import fill, small_disk

VMS = ("web-000", "web-001", "web-002")


@pytest.fixture
def host(bench: Bench, own_environment: Path) -> Iterator[Host]:
    """A host with three VMs on a disk that has just become full."""
    kib = 16384 if isinstance(bench, JailBench) else 1024  # each jail has a copy of the program
    with small_disk(own_environment / "state", kib=kib):
        host = Host(bench, own_environment)
        for vm in VMS:
            host.created(vm)
        fill(host.state_dir)
        try:
            yield host
        finally:
            host.close()
            if isinstance(bench, RealBench):
                bench.close()  # a jailed VMM is known by a path on the disk that goes now


def test_vms_are_stopped_and_deleted_on_a_full_disk_and_their_generations_go_on(host: Host) -> None:
    for verb, vm in (("stop", VMS[0]), ("delete", VMS[1]), ("delete", VMS[2])):
        fill(host.state_dir)  # nobody may rely on what the one before freed
        desired = desired_vm(vm, state="stopped") if verb == "stop" else None
        outcome = host.agent.execute(host.order(verb, vm, host.seen(vm), desired=desired))  # type: ignore[arg-type]
        assert outcome.result == "done", outcome.error
        assert host.bench.pids(vm) == []
    report = host.agent.observe(ObserveQuery())
    assert [(row.name, row.phase, row.drift) for row in report.vms] == [(VMS[0], "stopped", ())]
    tombstone = host.records.tombstone(VMS[1])
    assert tombstone is not None
    assert tombstone.generation == 2


def test_a_vmm_that_is_killed_on_a_full_disk_is_brought_back(host: Host) -> None:
    host.agent.supervise(rescan_s=0.05)
    fill(host.state_dir)
    before = host.seen(VMS[0])
    host.bench.kill(VMS[0])

    def is_back() -> bool:
        seen = host.seen(VMS[0])
        return seen is not None and seen.phase == "running" and before is not None and seen.pid != before.pid

    wait_until(is_back, "the VM to be back")


def test_what_needs_room_says_so_and_leaves_what_is_there(host: Host) -> None:
    outcome = host.agent.execute(host.order("create", "web-003"))
    assert outcome.result == "failed_temporary"
    assert "No space left on device" in (outcome.error or "")
    assert "mistake" not in (outcome.error or "")
    assert host.seen("web-003") is None
    assert host.bench.pids("web-003") == []
    with pytest.raises(TemporaryError, match="No space left"):
        host.records.write(replace(host.record(VMS[0]), last_error="x" * 100_000))
    assert host.record(VMS[0]).damage == ""
