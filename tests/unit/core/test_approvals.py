"""What of a plan people have to sign, and what is left of it without that."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from mikrom_reconcile.core.model.plan import ChangeKind, FieldChange, Plan, VMChange
from mikrom_reconcile.core.planning.context import actions_of
from mikrom_reconcile.core.planning.guards import held_back, loss_of, losses_of, statement_of
from tests.samples import NOW, SPEC, change, desired, observed, plan
from tests.unit.core.test_disks_and_replacing import disk

IMAGE = FieldChange(path="boot.rootfs", before="a", after="b", impact="replace")
HERE = "localhost"


def of(name: str, kind: ChangeKind, *, writable: bool = True, **fields: Any) -> VMChange:
    """A change of a VM whose root disk is of another image than it is to be."""
    before, after = (replace(SPEC, boot=disk(letter, read_only=not writable)) for letter in "ab")
    told = {"desired": desired(name, spec=after), "observed": observed(name, spec=before), "fields": (IMAGE,)}
    return change(name, kind, **told | fields)


def planned(*changes: VMChange) -> Plan:
    return plan(*changes, actions=tuple(actions_of(changes, "demo")))


PLAN = planned(
    of("a-replaced", "replace"),
    of("b-read-only", "replace", writable=False),
    of("c-grown", "update", fields=()),
    of("d-moved", "move", fields=()),
    of("e-gone", "delete", desired=None, fields=()),
    of("f-waits", "wait", wanted="replace"),
    of("g-waits", "wait", wanted="restart", fields=()),
    of("h-blocked", "blocked", wanted="replace"),
    change("i-new", "create", desired=desired("i-new")),
)
LOSING = {"a-replaced", "d-moved", "e-gone", "f-waits"}


def test_deletes_moves_and_new_root_disks_take_data_away_now_or_when_their_turn_comes() -> None:
    losses = losses_of(PLAN)
    assert losses.keys() == {(name, HERE) for name in LOSING}
    assert losses["e-gone", HERE] == '["demo","localhost","e-gone","01-uid",1,""]'
    assert losses["d-moved", HERE].endswith(',""]'), "its disks do not go with it"
    due = planned(of("f-waits", "replace"))
    assert loss_of(due.actions[0]) == losses["f-waits", HERE], "what was signed holds when it is its turn"
    older = planned(of("e-gone", "delete", desired=None, observed=observed("e-gone", generation=2)))
    assert losses_of(older)["e-gone", HERE] != losses["e-gone", HERE]


def test_what_is_signed_is_all_of_it_in_any_order_and_when() -> None:
    lines = ["b", "a"]
    assert statement_of(lines, NOW) == "mikrom approval 1\n2026-11-22T12:00:00+00:00\na\nb\n"
    assert statement_of(("a", "b"), NOW) == statement_of(lines, NOW)


def test_without_approvals_all_is_refused_that_takes_data_away_and_nothing_else() -> None:
    kept = held_back(PLAN, (), "two are missing")
    assert {each.name for each in kept.changes if each.kind == "blocked"} == LOSING | {"h-blocked"}
    assert {each.vm for each in kept.actions} == {"b-read-only", "c-grown", "i-new"}
    assert {(each.vm, each.rule, each.message) for each in kept.refusals} == {
        (name, "approval", "two are missing") for name in LOSING
    }
    assert kept.id != PLAN.id
    assert held_back(PLAN, tuple(losses_of(PLAN).values()), "") is PLAN
    one = held_back(PLAN, (losses_of(PLAN)["e-gone", HERE],), "it is another one")
    assert {each.vm for each in one.refusals} == LOSING - {"e-gone"}
