"""Specs on trial: since when a VM has its spec, whether it was ever healthy with it, and what is told of that."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Halt, Policy
from mikrom_reconcile.core.model.observed import Before, ObserveQuery, Progress, Trial
from mikrom_reconcile.core.model.plan import Action, Expect, Order
from mikrom_reconcile.host.orders.next_record import next_record
from mikrom_reconcile.host.ports import VMRecord
from tests.fakes import HOST, SPEC, HeldClock
from tests.unit.host.test_observe import Host, record_of

NOW = HeldClock().now()
TRIAL = Trial(since=NOW - timedelta(seconds=90), token=7)
ASKED = ObserveQuery(project="shop", trials={"web": 60.0})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    for vm in ("web-000", "web-001"):
        made.records.write(replace(record_of(vm), trial=TRIAL))
    return made


def test_what_was_never_healthy_with_its_spec_is_told_with_the_time_that_is_left(host: Host) -> None:
    del host.driver.vmms["web-000"]
    report = host.ask(ASKED)
    assert report.unproven == {"web-000": -30.0}
    assert report.progress == {"web": Progress(token=7, age_s=0.0)}, "web-001 was just found healthy"


def test_what_was_healthy_once_tells_nothing_more_against_its_spec(host: Host) -> None:
    host.ask(ASKED)
    del host.driver.vmms["web-000"]
    assert host.ask(ASKED).unproven == {}
    host.records.write(replace(record_of("web-000"), trial=replace(TRIAL, token=8)))
    assert host.ask(ASKED).unproven == {"web-000": -30.0}, "it has another spec since"


def test_what_is_too_young_is_not_proven_yet(host: Host) -> None:
    asked = replace(ASKED, min_healthy_s={"web": 1e9})
    assert host.ask(asked).unproven == {"web-000": -30.0, "web-001": -30.0}
    assert host.ask(asked).progress == {"web": Progress(token=7, age_s=90.0)}


def test_only_what_was_asked_for_is_judged(host: Host) -> None:
    del host.driver.vmms["web-000"]
    for trials in ({}, {"db": 1.0}):
        report = host.ask(replace(ASKED, trials=trials))
        assert (report.unproven, report.progress) == ({}, {})
    assert host.ask(replace(ASKED, trials={"web": None})).unproven == {}
    host.records.write(replace(record_of("web-000"), trial=TRIAL, state="stopped"))
    assert host.ask(ASKED).unproven == {}, "it is to be down"


def test_a_proof_that_was_damaged_or_cannot_be_kept_is_none(host: Host) -> None:
    host.ask(ASKED)
    proof = host.path / "proofs" / "web-000.json"
    proof.write_text("{")
    del host.driver.vmms["web-000"]
    assert host.ask(ASKED).unproven == {"web-000": -30.0}


def test_a_proof_goes_with_its_vm(host: Host) -> None:
    host.ask(ASKED)
    host.records.remove(replace(record_of("web-000"), trial=TRIAL))
    assert sorted(path.name for path in (host.path / "proofs").iterdir()) == ["web-001.json"]


@pytest.mark.parametrize(
    ("found", "wanted", "trial"),
    [
        ({}, {}, TRIAL),
        ({}, {"boot_args": "another"}, Trial(since=NOW, token=9)),
        ({}, {"mmds": {"a": 1}}, TRIAL),
        ({"state": "stopped"}, {}, replace(TRIAL, since=NOW)),
        ({"crash_loop": True}, {}, replace(TRIAL, since=NOW)),
        ({"crash_loop": True, "trial": None}, {}, Trial(since=NOW, token=9)),
    ],
)
def test_a_trial_begins_with_a_spec_for_which_the_vm_boots(
    found: dict[str, Any], wanted: dict[str, Any], trial: Trial
) -> None:
    record = replace(record_of("web-000"), **{"trial": TRIAL, "spec": replace(SPEC, mmds={}), **found})
    assert next_of(record, wanted).trial == trial


def test_canaries_and_halts_of_records_are_told(host: Host) -> None:
    halt = Halt(spec_digest="1:aa", why="a person has aborted it")
    host.records.write(replace(record_of("web-000"), trial=replace(TRIAL, canary=True), halt=halt))
    report = host.ask(ObserveQuery(project="shop"))
    assert (report.canaries, report.halts) == (("web-000",), {"web-000": halt})


def test_a_canary_is_one_until_its_record_says_otherwise_and_a_halt_ends_with_its_spec() -> None:
    halt = Halt(spec_digest="1:aa", why="a person has aborted it")
    found = replace(record_of("web-000"), trial=replace(TRIAL, canary=True), halt=halt)
    assert next_of(found, {}, spec_digest="1:aa") == replace(found, generation=2, token=9, action_id="1:dd")
    assert next_of(found, {"entropy": False}).halt is None
    promoted = next_of(found, {}, canary=False, halt=halt)
    assert (promoted.trial, promoted.halt) == (TRIAL, halt)
    assert next_of(replace(found, trial=None), {}, canary=False).trial is None
    assert next_of(found, {"boot_args": "another"}).trial == Trial(since=NOW, token=9)


EARLIER = Before(spec=replace(SPEC, boot_args="earlier"), token=3)
WAS = Before(spec=SPEC, token=7)
ANOTHER = {"boot_args": "another"}


@pytest.mark.parametrize(
    ("found", "wanted", "said", "proven", "before"),
    [
        ({}, ANOTHER, {"rollout": 0}, True, WAS),
        ({}, ANOTHER, {"rollout": 0}, False, EARLIER),
        ({}, ANOTHER, {}, True, None),
        ({"spec": replace(SPEC, mmds={})}, {"mmds": {"a": 1}}, {"rollout": 0}, True, EARLIER),
        ({"state": "stopped"}, {}, {}, False, EARLIER),
        ({"state": "stopped"}, {}, {}, True, None),
        ({"crash_loop": True}, {}, {}, True, None),
        ({"state": "absent"}, {}, {"rollout": 5}, True, None),
    ],
)
def test_a_vm_can_go_back_to_what_was_healthy_before(
    found: dict[str, Any], wanted: dict[str, Any], said: dict[str, Any], *, proven: bool, before: Before | None
) -> None:
    record = replace(record_of("web-000"), **{"trial": TRIAL, "before": EARLIER, **found})
    assert next_of(record, wanted, proven=proven, **said).before == before


def test_a_trial_has_the_token_of_the_run_in_which_its_rollout_began() -> None:
    record = replace(record_of("web-000"), trial=TRIAL)
    assert next_of(record, ANOTHER, rollout=0).trial == Trial(since=NOW, token=9)
    assert next_of(record, ANOTHER, rollout=8).trial == Trial(since=NOW, token=8)


def test_what_goes_back_has_its_earlier_trial_again_and_keeps_why() -> None:
    halt = Halt(spec_digest="1:aa", why="it was no good", outcome="reverted")
    record = replace(record_of("web-000"), trial=replace(TRIAL, canary=True), before=EARLIER)
    back = next_of(record, {"boot_args": "earlier"}, canary=False, halt=halt)
    assert (back.trial, back.halt, back.before) == (Trial(since=NOW, token=3), halt, EARLIER)
    assert next_of(back, {}).halt == halt, "a repair changes nothing about that"


def test_what_vms_had_before_is_told_where_it_is_asked_for(host: Host) -> None:
    host.records.write(replace(record_of("web-000"), before=EARLIER))
    assert host.ask(ASKED).before == {}
    assert host.ask(replace(ASKED, before=True)).before == {"web-000": EARLIER}


def test_a_promotion_takes_no_proof_away(host: Host) -> None:
    host.records.write(replace(record_of("web-000"), trial=replace(TRIAL, canary=True)))
    host.ask(ASKED)
    del host.driver.vmms["web-000"]
    host.records.write(replace(record_of("web-000"), trial=TRIAL))
    assert host.ask(ASKED).unproven == {}


def next_of(record: VMRecord, wanted: dict[str, Any], *, proven: bool = False, **said: Any) -> VMRecord:
    spec = replace(record.spec, **wanted)
    desired = DesiredVM(
        name=record.vm, project="shop", fleet="web", host=HOST, state="running", spec=spec, policy=Policy(),
        **{"spec_digest": "1:cc", **said},
    )  # fmt: skip
    action = Action(
        id="1:dd", verb="restart", host=HOST, vm=record.vm, project="shop", desired=desired,
        expect=Expect(uid=record.uid, generation=1), deadline_s=60.0,
    )  # fmt: skip
    return next_record(Order(run_id="r", token=9, action=action), record, tombstone=None, now=NOW, proven=proven)
