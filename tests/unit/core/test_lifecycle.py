"""Phases: every pair of what was ordered and what a driver proved."""

from __future__ import annotations

import pytest

from mikrom_reconcile.core.model.desired import State
from mikrom_reconcile.core.model.observed import End, Phase, VMMFacts, VMMStatus, phase_of
from mikrom_reconcile.times_and_sizes import VMMS

ALIVE: tuple[VMMStatus, ...] = ("starting", "running", "paused", "unresponsive", "socket_lost")


@pytest.mark.parametrize("status", [*ALIVE, "none"])
@pytest.mark.parametrize(("failed", "crash_loop"), [(False, False), (True, False), (False, True)])
def test_what_is_to_go_is_deleting_whatever_lives(status: VMMStatus, *, failed: bool, crash_loop: bool) -> None:
    assert phase_of(VMMFacts(status=status), "absent", failed=failed, crash_loop=crash_loop) == "deleting"


@pytest.mark.parametrize("status", ALIVE)
def test_what_lives_after_it_was_ordered_to_stop_is_stopping(status: VMMStatus) -> None:
    assert phase_of(VMMFacts(status=status), "stopped", failed=False, crash_loop=False) == "stopping"


@pytest.mark.parametrize(("failed", "crash_loop"), [(False, False), (True, False), (False, True)])
def test_what_is_down_as_ordered_is_stopped_whatever_happened_before(*, failed: bool, crash_loop: bool) -> None:
    facts = VMMFacts(status="none", end="crashed")
    assert phase_of(facts, "stopped", failed=failed, crash_loop=crash_loop) == "stopped"


@pytest.mark.parametrize("ordered", ["running", "paused"])
@pytest.mark.parametrize("status", ["running", "paused", "unresponsive", "socket_lost"])
def test_what_lives_is_what_was_proven(status: VMMStatus, ordered: State) -> None:
    assert phase_of(VMMFacts(status=status), ordered, failed=True, crash_loop=True) == status


@pytest.mark.parametrize(
    ("age_s", "phase"), [(0.0, "starting"), (VMMS.boot_s, "starting"), (VMMS.boot_s + 0.1, "failed")]
)
def test_what_has_not_booted_in_time_never_will(age_s: float, phase: Phase) -> None:
    assert phase_of(VMMFacts(status="starting", age_s=age_s), "running", failed=False, crash_loop=False) == phase


@pytest.mark.parametrize(
    ("end", "phase"),
    [
        ("clean", "exited"),
        ("crashed", "crashed"),
        ("killed", "killed"),
        ("rebooted", "rebooted"),
        ("suspended", "suspended"),
        ("unknown", "defined"),
    ],
)
@pytest.mark.parametrize("ordered", ["running", "paused"])
def test_how_it_ended_is_told_unless_it_was_given_up(end: End, phase: Phase, ordered: State) -> None:
    facts = VMMFacts(status="none", end=end)
    assert phase_of(facts, ordered, failed=False, crash_loop=False) == phase
    assert phase_of(facts, ordered, failed=True, crash_loop=False) == "failed"
    assert phase_of(facts, ordered, failed=True, crash_loop=True) == "crash_loop"


@pytest.mark.parametrize(("end", "phase"), [("suspended", "suspended"), ("crashed", "stopped"), ("unknown", "stopped")])
@pytest.mark.parametrize(("failed", "crash_loop"), [(False, False), (True, False), (False, True)])
def test_only_what_kept_its_memory_is_suspended(end: End, phase: Phase, *, failed: bool, crash_loop: bool) -> None:
    facts = VMMFacts(status="none", end=end)
    assert phase_of(facts, "suspended", failed=failed, crash_loop=crash_loop) == phase
    assert phase_of(facts, "stopped", failed=failed, crash_loop=crash_loop) == "stopped"
