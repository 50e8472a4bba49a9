"""Which orders of one call may be sent now: at most `forks` under way per host. Sends nothing itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from mikrom_reconcile.core.model.run import ActionOutcome, Order
from mikrom_reconcile.dispatch.transport.unreported import given_up


class Window:
    """The orders of one call: which wait, which are under way, at most `forks` of them per host."""

    def __init__(self, orders: Iterable[Order], forks: int) -> None:
        self._forks = forks
        self._waiting: dict[str, deque[Order]] = {}
        self._under_way: dict[str, dict[str, Order]] = {}
        for order in orders:  # all at once: a host must not wait because those before it in the plan are busy
            self._waiting.setdefault(order.action.host, deque()).append(order)

    def next_orders(self) -> Iterator[Order]:
        """Orders that may be sent now; each counts as under way."""
        for host, waiting in self._waiting.items():
            while waiting and len(self._under_way.get(host, ())) < self._forks:
                order = waiting.popleft()
                self._under_way.setdefault(host, {})[order.action.id] = order
                yield order

    def is_done(self) -> bool:
        """Whether nothing is under way; after `next_orders` that means that nothing waits either."""
        return not any(self._under_way.values())

    def finish(self, outcome: ActionOutcome | None) -> ActionOutcome | None:
        """`outcome`, or None when it was told before or nobody asked for it."""
        if outcome is None:
            return None
        asked = self._under_way.get(outcome.host, {}).pop(outcome.action_id, None)
        return outcome if asked is not None else None

    def lose(self, host: str, why: str) -> Iterator[ActionOutcome]:
        """A temporary failure for everything that was sent to `host` and not answered."""
        for order in self._under_way.pop(host, {}).values():
            yield given_up(order, "failed_temporary", why)

    def give_up(self, why: str) -> Iterator[ActionOutcome]:
        """The end of the call: what was sent failed, what was not is skipped."""
        for host in sorted(self._under_way):
            yield from self.lose(host, why)
        for order in chain.from_iterable(self._waiting.values()):
            yield given_up(order, "skipped", why)
        self._waiting.clear()
