"""A host that asks for approvals lets no VM lose its data without them, whatever control says."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.plan import Order, Verb
from mikrom_reconcile.core.planning.guards import loss_of
from tests.fakes import order
from tests.people import People
from tests.unit.host.conftest import VM, Host, error


@pytest.fixture
def people(tmp_path: Path, host: Host) -> People:
    people = People(tmp_path)
    host.agent.require(people.approvers(2))
    return people


def delete(host: Host) -> Order:
    return order("delete", VM, host.record())


def test_it_deletes_what_enough_people_have_approved_and_nothing_else(host: Host, people: People) -> None:
    host.created()
    plain = delete(host)
    losses = (loss_of(plain.action), "another")
    both = tuple(people.approval(name, losses) for name in ("ana", "bo"))
    other = tuple(people.approval(name, ("another",)) for name in ("ana", "bo"))
    refused = {
        "without": plain,
        "too few": replace(plain, losses=losses, approvals=both[:1]),
        "of others": replace(plain, losses=("another",), approvals=other),
        "smuggled in": replace(plain, losses=losses, approvals=other),
        "left out": replace(plain, losses=losses[:1], approvals=both),
    }
    for name, given in refused.items():
        outcome = host.execute(given)
        assert outcome.result == "failed_permanent", name
        assert "would lose its data: approvals needed to take data away: 2" in error(outcome)
        assert (host.steps, host.driver.calls) == ([], []), "nothing was begun"
    assert host.execute(replace(plain, losses=losses, approvals=both)).result == "done"
    again = host.execute(replace(plain, losses=losses, approvals=both))
    assert again.result == "already_done"


def test_what_was_approved_of_a_vm_as_it_was_is_not_of_the_one_made_after_it(host: Host, people: People) -> None:
    host.created()
    losses = (loss_of(delete(host).action),)
    both = tuple(people.approval(name, losses) for name in ("ana", "bo"))
    assert host.execute(replace(delete(host), losses=losses, approvals=both)).result == "done"
    host.created()
    assert host.execute(replace(delete(host), losses=losses, approvals=both)).result == "failed_permanent"


def test_all_that_takes_no_data_away_needs_nobody(host: Host, people: People) -> None:
    host.created()
    verbs: tuple[Verb, ...] = ("stop", "start", "restart")
    for verb in verbs:
        outcome = host.execute(order(verb, VM, host.record()))
        assert outcome.result == "done", outcome.error
