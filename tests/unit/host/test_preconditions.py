"""Which orders are refused, rule by rule. What carrying them out would do is tested elsewhere."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Policy, State
from mikrom_reconcile.core.model.plan import Order, Verb
from mikrom_reconcile.host.orders.preconditions import Ending, rejection_of
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import UnreadableRecord
from tests.fakes import SPEC, HeldClock, order

VM = "web-000"
VERBS: tuple[Verb, ...] = ("create", "start", "stop", "update", "restart", "delete")


def there(state: State = "running", generation: int = 4, project: str = "shop", action_id: str = "1:bb") -> VMRecord:
    return VMRecord(
        vm=VM, uid="aaaa", project=project, fleet="web", state=state, spec=SPEC, policy=Policy(), spec_digest="1:aa",
        generation=generation, token=7, action_id=action_id, created_at=HeldClock().now(),
    )  # fmt: skip


def answer(
    given: Order, found: VMRecord | UnreadableRecord | None, tombstone: VMRecord | None = None, highest_token: int = 0
) -> Ending | None:
    return rejection_of(given, found, tombstone=tombstone, highest_token=highest_token)


def said(given: Ending | None, result: str) -> str:
    assert given is not None
    assert given.result == result
    return given.error or ""


@pytest.mark.parametrize("verb", VERBS)
def test_an_older_run_is_fenced_off_whatever_it_orders(verb: Verb) -> None:
    error = said(answer(order(verb, VM, there(), token=6), there(), highest_token=7), "stale")
    assert "token 6" in error
    assert "token 7" in error
    assert said(answer(order(verb, VM, token=6), None, highest_token=7), "stale")


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_done_to_a_vm_whose_record_cannot_be_read(verb: Verb) -> None:
    error = said(answer(order(verb, VM), UnreadableRecord(vm=VM, reason="it is torn")), "failed_permanent")
    assert "it is torn" in error
    assert "move it away" in error


@pytest.mark.parametrize("verb", VERBS)
def test_a_vm_of_another_project_is_never_touched_not_even_by_an_order_that_expects_it(verb: Verb) -> None:
    foreign = there(project="blog")
    assert "belongs to project blog" in said(answer(order(verb, VM, foreign), foreign), "stale")
    given = order(verb, VM, foreign)
    assert said(answer(given, replace(foreign, action_id=given.action.id)), "stale")


@pytest.mark.parametrize("verb", VERBS)
def test_what_moved_since_the_plan_makes_an_order_stale(verb: Verb) -> None:
    for moved in (there(generation=5), replace(there(), uid="bbbb")):
        error = said(answer(order(verb, VM, there()), moved), "stale")
        assert "expected uid aaaa, generation 4" in error
        assert f"found uid {moved.uid}, generation {moved.generation}" in error
    assert "expected no such VM" in said(answer(order(verb, VM), there()), "stale")
    assert answer(order(verb, VM, there()), there()) is None


def test_deleting_the_absent_is_already_done() -> None:
    assert said(answer(order("delete", VM, there()), None), "already_done") == ""
    assert said(answer(order("delete", VM), None), "already_done") == ""


@pytest.mark.parametrize("verb", ["start", "stop", "update", "restart", "create"])
def test_what_was_there_and_is_gone_makes_an_order_stale(verb: Verb) -> None:
    error = said(answer(order(verb, VM, there()), None, there("absent", generation=5)), "stale")
    assert "found no web-000, deleted at generation 5" in error


def test_only_create_begins_with_nothing() -> None:
    tombstone = there("absent", generation=5)
    assert answer(order("create", VM), None, tombstone) is None
    assert said(answer(order("start", VM), None), "stale")


def test_the_same_order_again_passes_since_only_a_look_can_tell_what_is_left_of_it() -> None:
    given = order("create", VM)
    assert answer(given, there(action_id=given.action.id, generation=1)) is None
    assert answer(replace(given, token=9), there(action_id=given.action.id), highest_token=9) is None


@pytest.mark.parametrize("verb", ["start", "stop", "update", "restart"])
def test_what_is_half_deleted_is_only_created_or_deleted(verb: Verb) -> None:
    gone = there(state="absent")
    assert "half deleted" in said(answer(order(verb, VM, gone), gone), "stale")
    assert answer(order("create", VM, gone), gone) is None
    assert answer(order("delete", VM, gone), gone) is None
