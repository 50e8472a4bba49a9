"""What `doctor` says of a machine that has no room: what there is, and how to mend it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from mikrom_reconcile import settings
from mikrom_reconcile.doctor import machine as host_checks
from mikrom_reconcile.doctor.machine import run_checks
from mikrom_reconcile.host.observe import capacity
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.output.doctor import Check
from tests.contract.drivers import record_of

ROOM = ("user", "disk", "memory", "descriptors")


def check(name: str) -> Check:
    (found,) = run_checks({name: host_checks.CHECKS[name]}, settings.load())
    return found


def test_a_machine_with_room_is_fine_and_every_check_says_what_it_found() -> None:
    checks = [check(name) for name in ROOM]
    assert all(check.found for check in checks)
    assert all(check.remedy for check in checks if check.state != "ok")


def test_more_promised_than_there_is(own_environment: Path) -> None:
    Records(own_environment / "state").write(record_of("a", mem_size_mib=capacity().mem_size_mib + 1))
    found = check("memory")
    assert (found.state, "promised to 1 VM" in found.found) == ("broken", True)
    assert "stop some VMs" in found.remedy


@pytest.mark.parametrize(
    ("free", "inodes", "state"),
    [(1 << 40, 1000, "ok"), (1 << 29, 1000, "note"), (1, 1000, "broken"), (1 << 40, 3, "broken")],
)
def test_a_disk_that_is_full_or_nearly(monkeypatch: pytest.MonkeyPatch, free: int, inodes: int, state: str) -> None:
    full = os.statvfs_result((1, 1, free, free, free, 1000, inodes, inodes, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert check("disk").state == state


def test_fewer_descriptors_than_vms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    found = check("descriptors")
    assert (found.state, found.found) == ("broken", "64 allowed, 256 needed")
    assert "LimitNOFILE" in found.remedy
