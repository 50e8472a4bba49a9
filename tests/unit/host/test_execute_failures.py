"""What is kept, cleaned up, logged and answered when an order cannot be carried out as it should."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.errors import PastDeadlineError, PermanentError
from mikrom_reconcile.core.model.observed import Attempt, ObserveQuery, VMMFacts
from mikrom_reconcile.host import json_folder
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.system.files import read_small
from tests.fakes import BIGGER, HOST, SPEC, desired_vm, order
from tests.unit.host.conftest import PERMANENT, TEMPORARY, VM, Host, error


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        (TEMPORARY, "failed_temporary"),
        (PERMANENT, "failed_permanent"),
        (PastDeadlineError("too late"), "failed_temporary"),
        (ZeroDivisionError("by zero"), "failed_permanent"),
    ],
)
@pytest.mark.parametrize("when", ["start", "start, late"])
def test_a_failed_start_leaves_no_vmm_and_says_why_it_failed(
    host: Host, caplog: pytest.LogCaptureFixture, fault: Exception, result: str, when: str
) -> None:
    host.driver.faults[when] = [fault]
    outcome = host.execute(order("create", VM))
    assert outcome.result == result
    assert str(fault) in error(outcome)
    assert "no VMM was left behind" in error(outcome)
    assert host.driver.vmms == {}
    assert host.record().last_error == outcome.error
    assert outcome.observed is not None
    assert (outcome.observed.phase, outcome.observed.last_error) == ("failed", outcome.error)
    has_traceback = any(entry.exc_info for entry in caplog.records)
    assert has_traceback == isinstance(fault, ZeroDivisionError)


def test_attempts_are_counted_for_one_spec_and_forgotten_on_success(host: Host) -> None:
    digest = desired_vm(VM).spec_digest
    host.driver.faults["start"] = [TEMPORARY, TEMPORARY, PERMANENT, TEMPORARY]
    seen = host.execute(order("create", VM)).observed
    assert (attempt_of(host).spec_digest, attempt_of(host).count) == (digest, 1)
    for count, result in ((2, "failed_temporary"), (3, "failed_permanent")):
        seen = host.execute(order("start", VM, seen)).observed
        assert (attempt_of(host).count, attempt_of(host).result) == (count, result)
        assert not attempt_of(host).repair
    other = desired_vm(VM, BIGGER)
    seen = host.execute(order("start", VM, seen, desired=other)).observed
    assert (attempt_of(host).spec_digest, attempt_of(host).count) == (other.spec_digest, 1)
    outcome = host.execute(order("start", VM, seen, desired=other))
    assert outcome.result == "done"
    assert (host.record().attempt, host.record().last_error) == (None, None)
    assert outcome.observed is not None
    assert (outcome.observed.attempt, outcome.observed.last_error) == (None, None)


def test_the_same_order_again_after_a_failure_carries_on(host: Host) -> None:
    host.driver.faults["start"] = [TEMPORARY]
    given = order("create", VM)
    assert host.execute(given).result == "failed_temporary"
    uid = host.record().uid
    assert host.execute(given).result == "done"
    assert (host.record().uid, host.record().generation, host.record().attempt) == (uid, 1, None)


def test_what_ended_again_at_once_is_not_done(host: Host) -> None:
    host.driver.facts[VM] = VMMFacts(status="none", end="crashed")
    outcome = host.execute(order("create", VM))
    assert outcome.result == "failed_temporary"
    assert "expected running, found crashed" in error(outcome)


def test_a_vmm_that_runs_with_something_else_is_not_done(host: Host) -> None:
    seen = host.created()
    host.driver.vmms.clear()
    host.driver.boots_instead = BIGGER
    outcome = host.execute(order("start", VM, seen))
    assert outcome.result == "failed_temporary"
    assert "machine.mem_size_mib is 8" in error(outcome)


def test_a_vmm_that_will_not_go_is_told(host: Host) -> None:
    host.driver.faults["start, late"] = [TEMPORARY]
    host.driver.faults["stop"] = [PermanentError("pid 7 is stuck", vm=VM, step="killing it")]
    assert "ending its VMM failed too: web-000: pid 7 is stuck" in error(host.execute(order("create", VM)))


def test_a_stop_that_fails_kills_nothing_more(host: Host) -> None:
    seen = host.created()
    host.driver.faults["stop"] = [TEMPORARY]
    outcome = host.execute(order("stop", VM, seen))
    assert outcome.result == "failed_temporary"
    assert outcome.observed is not None
    assert outcome.observed.phase == "stopping"
    assert host.driver.calls == ["stop"]


def test_an_unsupported_spec_is_refused_before_anything_is_written(host: Host) -> None:
    host.driver.refused = "33 vcpus"
    outcome = host.execute(order("create", VM))
    assert outcome.result == "failed_permanent"
    assert "33 vcpus" in error(outcome)
    assert host.records.read(VM) is None
    assert not (host.path / "vms").exists()


def test_a_deadline_that_passes_between_two_steps_ends_the_action(host: Host) -> None:
    def slow(_vm: str, step: str) -> None:
        host.clock.moved_s += 15 if step in {"starting", "verifying"} else 0

    late = HostAgent(HOST, driver=host.driver, records=host.records, clock=host.clock, on_step=slow)
    outcome = late.execute(order("create", VM, deadline_s=20))
    assert outcome.result == "failed_temporary"
    assert "deadline of 20 s has passed" in error(outcome)
    assert host.driver.vmms == {}


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_is_no_exception_passes_through_after_cleaning_up(host: Host, end: type[BaseException]) -> None:
    host.driver.faults["start, late"] = [end()]
    host.driver.faults["stop"] = [ZeroDivisionError()]
    with pytest.raises(end):
        host.execute(order("create", VM))
    assert host.driver.calls == ["start", "stop"]
    assert attempt_of(host).count == 0, "an interruption is no failure of the spec"
    host.driver.vmms.clear()
    assert host.execute(order("create", VM)).result == "done", "the lock was not given back"


def test_an_error_too_long_to_keep_is_cut_in_the_record_only(host: Host) -> None:
    host.driver.faults["start"] = [PermanentError("x" * 10_000, vm=VM, step="booting")]
    outcome = host.execute(order("create", VM))
    assert len(error(outcome)) > 10_000
    assert len(host.record().last_error or "") == 2000


def test_an_observation_that_fails_does_not_hide_what_happened(host: Host) -> None:
    seen = host.created()
    host.driver.faults["stop"] = [TEMPORARY]
    host.driver.faults["observe"] = [PERMANENT]
    outcome = host.execute(order("stop", VM, seen))
    assert "no memory" in error(outcome)
    assert outcome.observed is None


def test_an_order_for_another_host_is_refused(host: Host) -> None:
    outcome = host.execute(order("create", VM, host="hv2"))
    assert outcome.result == "failed_permanent"
    assert "this is hv1, not hv2" in error(outcome)
    assert not (host.path / "vms").exists()


def test_an_order_for_a_name_that_leads_elsewhere_is_refused(host: Host) -> None:
    outcome = host.execute(order("create", "../../etc"))
    assert outcome.result == "failed_permanent"
    assert list(host.path.iterdir()) == []


def test_the_console_is_the_drivers(host: Host) -> None:
    assert host.agent.console(VM, max_bytes=7).content == b"web-000"
    with pytest.raises(PermanentError):
        host.agent.console("../../etc", max_bytes=7)


def test_a_record_that_failed_and_yet_runs_is_put_right_by_the_same_order(host: Host) -> None:
    given = order("create", VM)
    host.execute(given)
    failed = replace(
        host.record(), last_error="killed before it could forget", attempt=Attempt(spec_digest="x", count=1)
    )
    host.records.write(failed)
    outcome = host.execute(given)
    assert outcome.result == "already_done"
    assert (host.record().last_error, host.record().attempt) == (None, None)
    assert outcome.observed is not None
    assert (outcome.observed.last_error, outcome.observed.attempt) == (None, None)


def test_an_attempt_to_make_a_vm_that_left_no_record_is_kept_until_it_is_made(host: Host) -> None:
    host.driver.refused = "33 vcpus"
    for count in (1, 2):
        assert host.execute(order("create", VM)).result == "failed_permanent"
        (attempt,) = host.records.attempts().values()
        assert (attempt.count, attempt.result, "33 vcpus" in attempt.error) == (count, "failed_permanent", True)
    assert host.execute(order("create", VM, desired=desired_vm(VM, BIGGER))).result == "failed_permanent"
    assert host.records.attempts()[VM].count == 1, "another spec has other attempts"
    host.driver.refused = None
    host.created()
    assert (host.records.attempts(), host.record().attempt) == ({}, None)


def test_an_order_that_is_refused_leaves_what_runs_as_it_was_but_for_the_attempt(host: Host) -> None:
    seen = host.created()
    host.driver.refused = "33 vcpus"
    outcome = host.execute(order("restart", VM, seen, desired=desired_vm(VM, BIGGER)))
    assert (outcome.result, host.driver.vmms) == ("failed_permanent", {VM: SPEC})
    assert outcome.observed is not None
    assert replace(outcome.observed, attempt=None) == seen
    assert (attempt_of(host).spec_digest, attempt_of(host).repair) == (desired_vm(VM, BIGGER).spec_digest, False)
    host.driver.refused = None
    assert host.execute(order("restart", VM, seen, desired=desired_vm(VM, BIGGER))).result == "done"
    assert host.record().attempt is None


def test_a_vm_that_ran_with_its_spec_and_cannot_be_brought_back_tells_nothing_against_that(host: Host) -> None:
    seen = host.created()
    host.driver.vmms.clear()
    host.driver.faults["start"] = [TEMPORARY, PERMANENT]
    for count in (1, 2):
        seen = host.execute(order("start", VM, seen)).observed or seen
        assert (attempt_of(host).count, attempt_of(host).repair) == (count, True)


def test_a_start_that_was_cut_off_is_a_first_try_the_next_time_too(host: Host) -> None:
    seen = host.created()
    host.driver.faults["start"] = [SystemExit(), PERMANENT]
    with pytest.raises(SystemExit):
        host.execute(order("restart", VM, seen, desired=desired_vm(VM, BIGGER)))
    seen = host.agent.observe(ObserveQuery()).vms[0]
    host.execute(order("start", VM, seen, desired=desired_vm(VM, BIGGER)))
    assert (attempt_of(host).count, attempt_of(host).repair) == (1, False)


def attempt_of(host: Host) -> Attempt:
    found = host.record().attempt
    assert found is not None
    return found


def test_what_a_failure_costs_does_not_grow_with_those_before_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        host.records.note_attempt(f"old-{number:03d}", Attempt(spec_digest="1:aa", count=1))
    host.driver.refused = "33 vcpus"
    opened: list[str] = []

    def counted(path: Path, *, max_bytes: int) -> bytes | None:
        opened.append(f"{path.parent.name}/{path.name}")
        return read_small(path, max_bytes=max_bytes)

    monkeypatch.setattr(json_folder, "read_small", counted)
    assert host.execute(order("create", VM)).result == "failed_permanent"
    assert [name for name in opened if name.startswith("attempts/")] == [f"attempts/{VM}.json"]
