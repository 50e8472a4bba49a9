"""Which orders may be under way at the same moment."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from mikrom_reconcile.core.model.plan import ActionOutcome, Order
from mikrom_reconcile.dispatch.hosts.remote import OrderQueue
from mikrom_reconcile.dispatch.transport.order_envelope import given_up
from tests.fakes import order


def orders(*names: str) -> list[Order]:
    """Named "host/vm"."""
    return [order("create", vm, host=host) for host, _, vm in (name.partition("/") for name in names)]


def names(sent: Iterator[Order]) -> list[str]:
    return [f"{each.action.host}/{each.action.vm}" for each in sent]


def done(sent: Order) -> ActionOutcome:
    return given_up(sent, "done", "")


def test_each_host_has_forks_of_its_own() -> None:
    window = OrderQueue(orders("a/1", "a/2", "a/3", "b/1", "b/2"), 2)
    assert names(window.next_orders()) == ["a/1", "a/2", "b/1", "b/2"]
    assert names(window.next_orders()) == []
    assert not window.can_send()


def test_hosts_with_least_to_do_are_sent_theirs_first_however_few_are_sent_at_once() -> None:
    all_orders = orders("a/1", "a/2", "a/3", "b/1", "b/2")
    window = OrderQueue(all_orders, 2)
    assert names(islice(window.next_orders(), 2)) == ["a/1", "a/2"]
    window.finish(done(all_orders[0]))
    assert window.can_send()
    assert names(window.next_orders()) == ["b/1", "b/2", "a/3"]


def test_an_outcome_makes_room_on_its_host_only() -> None:
    all_orders = orders("a/1", "a/2", "b/1", "b/2")
    window = OrderQueue(all_orders, 1)
    assert names(window.next_orders()) == ["a/1", "b/1"]
    window.finish(done(all_orders[2]))
    assert names(window.next_orders()) == ["b/2"]


def test_an_outcome_is_told_once_and_one_that_nobody_asked_for_never() -> None:
    first, foreign = orders("a/1", "c/9")
    window = OrderQueue([first], 1)
    list(window.next_orders())
    told = done(first)
    assert window.finish(told) is told
    assert window.finish(done(first)) is None
    assert window.finish(done(foreign)) is None
    assert window.finish(None) is None
    assert window.is_done()


def test_a_lost_host_fails_what_it_was_sent_and_gets_the_rest_when_it_is_back() -> None:
    window = OrderQueue(orders("a/1", "a/2", "b/1"), 1)
    list(window.next_orders())
    lost = list(window.lose("a", "died"))
    assert [(outcome.vm, outcome.result, outcome.error) for outcome in lost] == [("1", "failed_temporary", "died")]
    assert names(window.next_orders()) == ["a/2"]


def test_at_the_end_what_was_sent_has_failed_and_the_rest_is_skipped() -> None:
    window = OrderQueue(orders("a/1", "a/2", "b/1", "b/2", "a/3"), 1)
    list(window.next_orders())
    results = {f"{outcome.host}/{outcome.vm}": outcome.result for outcome in window.give_up("late")}
    sent = dict.fromkeys(("a/1", "b/1"), "failed_temporary")
    assert results == sent | dict.fromkeys(("a/2", "a/3", "b/2"), "skipped")
    assert window.is_done()
    assert names(window.next_orders()) == []
