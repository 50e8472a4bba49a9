"""Checks of real guests, observed as control would observe them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.desired import Check, DesiredVM, Machine, VMSpec
from mikrom_reconcile.core.model.observed import ObservedVM
from tests.contract.drivers import Bench
from tests.contract.hosts import Host
from tests.fakes import desired_vm
from tests.guests import MEM_MIB

VM = "web-000"


def wanted(check: Check, boot_args: str = "quiet") -> DesiredVM:
    spec = VMSpec(image="hello", machine=Machine(mem_size_mib=MEM_MIB), boot_args=boot_args, checks={"up": check})
    return desired_vm(VM, spec)


def phase_after(host: Host, left: str) -> ObservedVM:
    """What the VM is once it is no more in the phase `left`."""
    give_up_at = time.monotonic() + 5
    while (seen := host.seen(VM)) is None or seen.phase == left:
        assert time.monotonic() < give_up_at, f"it is still {left}"
        time.sleep(0.01)
    return seen


def test_a_guest_boots_until_its_console_says_so(bench: Bench, own_environment: Path) -> None:
    host = Host(bench, own_environment)
    host.created(VM, wanted(Check(type="console", expect="MIKROM-UP", interval="0s")))
    assert phase_after(host, "booting").phase == "running"
    host.converge(VM, wanted(Check(type="console", expect="never said", interval="0s")))
    seen = host.seen(VM)
    assert seen is not None
    assert (seen.phase, seen.health) == ("booting", "check up: the console does not yet say 'never said'")
    assert len(bench.pids(VM)) == 1


@pytest.mark.kvm
def test_what_an_earlier_boot_said_counts_no_more(bench: Bench, own_environment: Path) -> None:
    host = Host(bench, own_environment)
    said = Check(type="console", expect="MIKROM-UP first", interval="0s")
    host.created(VM, wanted(said, "first"))
    assert phase_after(host, "booting").phase == "running"
    host.converge(VM, wanted(said, "second"))
    seen = host.seen(VM)
    assert seen is not None
    assert seen.phase == "booting"
